"""The admin's page of deferred checks: what workers still have to do, what came of it, and a second chance.

Exists apart from the other records because it alone has a verb. Protects the rules of ``streaming.retry``, and that
who handed a check on is kept in its history; that takes a permission of its own, which looking does not give.
"""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from guardrails.admin.base import ReadOnlyAdmin, remember
from streaming.breakers import NOT_ASKED
from streaming.database_clock import database_now
from streaming.models import DeferredCheck
from streaming.presentation import milliseconds
from streaming.retry import NotRetried, retry
from streaming.standing import state_of

RETRY = "streaming.retry_deferredcheck"


class HeldUp(admin.SimpleListFilter):
    """Those that wait until their guardrail may be asked again."""

    title = "circuit"
    parameter_name = "circuit"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        """One choice beside all."""
        return [("open", "Circuit open")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeferredCheck]) -> QuerySet[DeferredCheck]:
        """The same rule as ``standing.state_of``."""
        if self.value() != "open":
            return queryset
        return queryset.filter(state=DeferredCheck.State.WAITING, error__startswith=NOT_ASKED)


@admin.register(DeferredCheck)
class DeferredCheckAdmin(ReadOnlyAdmin[DeferredCheck]):
    """The outbox of checks that workers make."""

    list_display = ("guardrail", "its_state", "attempts", "queued_at", "waited", "took", "error", "its_session")
    list_filter = ("state", HeldUp, "guardrail", "applies_to", "session__policy_name")
    list_per_page = 50
    search_fields = ("session__id",)
    readonly_fields = ("waited", "took")
    ordering = ("-queued_at", "-pk")
    actions = ("queue_again",)

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm(RETRY)

    @admin.display(description="State", ordering="state")
    def its_state(self, check: DeferredCheck) -> str:
        """As readers are told it."""
        return "Circuit open" if state_of(check) == "circuit_open" else str(check.get_state_display())

    @admin.display(description="Session", ordering="session")
    def its_session(self, check: DeferredCheck) -> str:
        """Its id."""
        return str(check.session_id)

    @admin.display(description="Waited")
    def waited(self, check: DeferredCheck) -> str:
        """From the queue to the worker that took it last."""
        if check.started_at is None or check.started_at < check.queued_at:
            return "–"
        return _unbroken((check.started_at - check.queued_at).total_seconds() * 1000)

    @admin.display(description="Took")
    def took(self, check: DeferredCheck) -> str:
        """The check itself, as its worker measured it."""
        took = check.result.get("took_ms") if isinstance(check.result, dict) else None
        return _unbroken(took if isinstance(took, int | float) and took > 0 else None)

    @admin.action(description="Hand to the workers again", permissions=["retry"])
    def queue_again(self, request: HttpRequest, queryset: QuerySet[DeferredCheck]) -> None:
        """Queue those that wait, or whose worker has been silent for too long; say of the others why not."""
        for check in queryset.select_related(None):
            named = f"{check.guardrail} of session {check.session_id}"
            try:
                retry(check_id=check.pk, now=database_now())
            except NotRetried as error:
                messages.error(request, f"{named}: {error}.")
                continue
            messages.success(request, f"{named}: handed to the workers again.")
            remember(request, check, "Handed to the workers again.")


def _unbroken(ms: float | None) -> str:
    """A duration on one line, however narrow its column."""
    return milliseconds(ms).replace(" ", "\u00a0")
