"""Verdicts for a shadow that come when its session's answer is over, and what they change in the comparison.

There are two sorts. A guardrail that both versions have, with the same parameters over the same texts, is asked once:
the verdict that a worker stores for the active one counts for the shadow too, as the shadow's mode and action would
have it. All others have a check of their own (``streaming.shadow.outbox``). Protects the rule that nothing of this is
the session's own: no finding, no ``would_have`` and no event, and none of it keeps the session open. What fails or
expires leaves the session `unknown`. Where the session is sealed already, the audit log commits to the comparison as it
stands since by an entry of its own; a session that was sealed together with its comparison keeps that.

In a session wholly in MONITOR guardrails that decide run after the answer as well; what they find counts as what the
active version would have done, whether the shadow has them or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto

from guardrails.findings import HIDING, Finding, Mode, would_have
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest
from streaming.audit import services as audit
from streaming.models import AuditSession, DeferredCheck
from streaming.shadow.record import MAX_FINDINGS, Comparison, compared

JUDGED = (DeferredCheck.State.PASSED, DeferredCheck.State.HIT, DeferredCheck.State.WOULD_BLOCK)


class Came(Enum):
    """What became of a shadow's own check."""

    VERDICT = auto()
    FAILURE = auto()
    NOTHING = auto()
    """Nobody made it in time, or nobody is paid for it any more."""


def alike(one: Guardrail, other: Guardrail) -> bool:
    """Whether both ask the same about the same texts; what a hit leads to may differ."""
    same = one.kind == other.kind and one.applies_to == other.applies_to
    return same and one.impl.config == other.impl.config


def reuse(session: AuditSession, active: Guardrail, findings: Iterable[Finding], *, shared: bool = True) -> None:
    """Take the verdict of the active version's guardrail into the session's comparison, in the caller's transaction.

    ``session``: locked, not sealed yet, with the check's row stored. ``shared``: whether a shadow that has the same
    guardrail may take the verdict for its own.
    """
    details: dict[str, object] = session.shadow
    if "acted" not in details:  # stored before verdicts that come later counted: what the active version did is unknown
        return
    found = list(findings)
    decided = session.monitor and active.mode is Mode.BLOCK and any(one.action in HIDING for one in found)
    did = bool(details["acted"]) or decided
    beside = _beside(details, active) if shared else None
    if beside is not None:
        policy, guardrail = beside
        left = _without(details, active.name) if _all_judged(session, active.name) else _names(details, "not_run")
        _fold(session, {**details, "acted": did, "not_run": left}, policy, guardrail, found)
    elif did != details["acted"]:
        whole = session.shadow_comparison != Comparison.UNKNOWN
        AuditSession.objects.filter(pk=session.pk).update(
            shadow={**details, "acted": did},
            shadow_comparison=compared(active=did, shadow=bool(session.shadow_would_have), whole=whole).value,
        )


def settle(session: AuditSession, name: str, findings: Iterable[Finding], came: Came) -> None:
    """Take what became of one of the shadow's own checks into the comparison, in the caller's transaction.

    ``session``: locked.
    """
    details: dict[str, object] = session.shadow
    sealed = session.state == AuditSession.State.COMPLETE
    if sealed and not audit.shadow_may_change(session=session):
        return
    late = _numbers(details, "late")
    late[name] = late.get(name, 0) - 1
    over = late[name] <= 0
    details = {**details, "late": {one: left for one, left in late.items() if left > 0}}
    if came is Came.FAILURE:
        failures = _numbers(details, "failures")
        details["failures"] = {**failures, name: failures.get(name, 0) + 1}
    elif came is Came.NOTHING:
        unanswered = details.get("unanswered")
        details["unanswered"] = (unanswered if isinstance(unanswered, int) else 0) + 1
    shared = name in _names(details, "shared") and not _all_judged(session, name)
    if over and came is not Came.NOTHING and not shared:
        details["not_run"] = _without(details, name)
    try:
        policy: Policy = policy_by_digest(str(details.get("digest")))
        guardrail = policy.guardrail(name)
    except (PolicyUnavailable, KeyError):
        details["error"] = details.get("error") or "the version cannot be loaded any more"
        AuditSession.objects.filter(pk=session.pk).update(shadow=details)
    else:
        _fold(session, details, policy, guardrail, findings)
    if sealed:
        audit.shadow_changed(session_id=str(session.pk))


def _beside(details: Mapping[str, object], active: Guardrail) -> tuple[Policy, Guardrail] | None:
    """The shadow's policy and its guardrail that asks the very same thing and was not run for itself.

    One that looks at sentences has verdicts of its own, and what is said of a whole text is none of them.
    """
    told = details.get("late") is not None or details.get("shared") is not None
    if active.name not in _names(details, "shared" if told else "not_run"):
        return None
    try:
        policy: Policy = policy_by_digest(str(details["digest"]))
        beside = policy.guardrail(active.name)
    except (PolicyUnavailable, KeyError):
        return None
    return (policy, beside) if beside.checkpoint is Checkpoint.DEFERRED and alike(active, beside) else None


def _all_judged(session: AuditSession, name: str) -> bool:
    """Whether all that the session's own checks have to say of this guardrail's texts is there."""
    rows = DeferredCheck.objects.filter(session=session, guardrail=name)
    return not rows.exclude(state__in=JUDGED).exists()


def _fold(
    session: AuditSession,
    details: Mapping[str, object],
    policy: Policy,
    beside: Guardrail,
    findings: Iterable[Finding],
) -> None:
    """Store ``details`` with these findings of the shadow's guardrail, and what the comparison is now."""
    decides = beside.mode is Mode.BLOCK
    mine = [
        replace(one, mode=Mode.MONITOR, action=beside.action,
                would_have=would_have(Mode.MONITOR, beside.action) if decides else None)
        for one in findings
    ]  # fmt: skip
    stored = details.get("findings")
    kept: list[object] = list(stored) if isinstance(stored, list) else []
    more = details.get("more")
    total = len(kept) + (more if isinstance(more, int) else 0)
    numbered = [{**replace(one, n=total + n).as_dict(), "version": session.shadow_version}
                for n, one in enumerate(mine, start=1)]  # fmt: skip
    shown = [*kept, *numbered][: max(MAX_FINDINGS, len(kept))]
    said = {session.shadow_would_have, *(one.would_have for one in mine)}
    worst = "blocked" if "blocked" in said else "redacted" if "redacted" in said else ""
    failed = any(details.get(name) for name in ("error", "unanswered", "failures"))
    whole = not failed and not any(policy.guardrail(name).decides for name in _names(details, "not_run"))
    AuditSession.objects.filter(pk=session.pk).update(
        shadow={**details, "findings": shown, "more": total + len(mine) - len(shown)},
        shadow_would_have=worst,
        shadow_comparison=compared(active=bool(details.get("acted")), shadow=bool(worst), whole=whole).value,
    )


def _names(details: Mapping[str, object], key: str) -> list[str]:
    found = details.get(key)
    return [str(name) for name in found] if isinstance(found, list) else []


def _without(details: Mapping[str, object], name: str) -> Sequence[str]:
    """``not_run`` but for this one, unless checks of its own are still out."""
    left = _names(details, "not_run")
    return left if name in _numbers(details, "late") else [one for one in left if one != name]


def _numbers(details: Mapping[str, object], key: str) -> dict[str, int]:
    found = details.get(key)
    return {str(name): int(number) for name, number in found.items()} if isinstance(found, dict) else {}
