"""A shadow's guardrail that runs after the answer, where the active version has asked the very same thing.

Exists because a judge is not paid twice for one answer: where both versions have a guardrail of that name with the same
parameters over the same texts, the verdict that a worker stores for the active one counts in the comparison as well, as
the shadow's mode and action would have it. Protects the rule that nothing of this is the session's own: no finding, no
``would_have`` and no event. What fails or expires leaves the session as it was: `unknown` where the guardrail decides.
In a session wholly in MONITOR guardrails that decide run after the answer as well; what they find counts as what the
active version would have done, whether the shadow has them or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from guardrails.findings import HIDING, Finding, Mode, would_have
from guardrails.policy import Guardrail, Policy
from guardrails.selectors import PolicyUnavailable, policy_by_digest
from streaming.models import AuditSession, DeferredCheck
from streaming.shadow.record import MAX_FINDINGS, Comparison, compared

JUDGED = (DeferredCheck.State.PASSED, DeferredCheck.State.HIT, DeferredCheck.State.WOULD_BLOCK)


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
        _take(session, {**details, "acted": did}, active, *beside, found)
    elif did != details["acted"]:
        whole = session.shadow_comparison != Comparison.UNKNOWN
        AuditSession.objects.filter(pk=session.pk).update(
            shadow={**details, "acted": did},
            shadow_comparison=compared(active=did, shadow=bool(session.shadow_would_have), whole=whole).value,
        )


def _beside(details: Mapping[str, object], active: Guardrail) -> tuple[Policy, Guardrail] | None:
    """The shadow's policy and its guardrail that asks the very same thing and was not run for itself."""
    not_run = details.get("not_run")
    if not isinstance(not_run, list) or active.name not in not_run:
        return None
    try:
        policy: Policy = policy_by_digest(str(details["digest"]))
        beside = policy.guardrail(active.name)
    except (PolicyUnavailable, KeyError):
        return None
    return (policy, beside) if alike(active, beside) else None


def _take(
    session: AuditSession,
    details: Mapping[str, object],
    active: Guardrail,
    policy: Policy,
    beside: Guardrail,
    findings: Iterable[Finding],
) -> None:
    asked_later = details.get("not_run")
    not_run: list[object] = asked_later if isinstance(asked_later, list) else []
    rows = DeferredCheck.objects.filter(session=session, guardrail=active.name)
    left = [str(name) for name in not_run if name != active.name or rows.exclude(state__in=JUDGED).exists()]
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
    whole = not failed and not any(policy.guardrail(name).decides for name in left)
    AuditSession.objects.filter(pk=session.pk).update(
        shadow={**details, "findings": shown, "more": total + len(mine) - len(shown), "not_run": left},
        shadow_would_have=worst,
        shadow_comparison=compared(active=bool(details["acted"]), shadow=bool(worst), whole=whole).value,
    )
