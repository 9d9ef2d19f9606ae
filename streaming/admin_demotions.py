"""The admin's page of guardrails at work: open breakers, what is slower than declared, and what runs later for it.

Exists apart from the policies' own pages because the answer lies in what was measured, which those know nothing of.
Protects the rule that measurement only ever demotes: the one verb is to lift a demotion, with a permission of its own,
and it is logged.
"""

from __future__ import annotations

from typing import cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin

from streaming import demotion
from streaming.at_work import guardrails_at_work_now
from streaming.models import Demotion
from streaming.presentation import milliseconds


@admin.register(Demotion)
class DemotionAdmin(ModelAdmin):  # type: ignore[misc]  # unfold carries no types
    """Demotions, below the guardrails of active policies as they are now."""

    list_display = (
        "__str__",
        "declared",
        "checkpoint",
        "p95",
        "measurements",
        "at",
        "stands",
        "lifted_at",
        "lifted_by",
    )
    list_filter = ("policy_name", "guardrail")
    list_select_related = ("lifted_by",)
    list_before_template = "admin/streaming/demotion/at_work.html"
    actions = ("lift",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Measurement demotes, nobody else."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No: lifting keeps it on record."""
        return False

    def has_lift_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm("streaming.lift_demotion")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        """The list, with the state of today before it."""
        context = {**(extra_context or {}), "title": "Guardrails at work", "at_work": guardrails_at_work_now()}
        return cast("HttpResponse", super().changelist_view(request, context))

    @admin.display(description="p95")
    def p95(self, row: Demotion) -> str:
        """What was measured."""
        return milliseconds(row.p95_ms)

    @admin.display(boolean=True, description="Stands")
    def stands(self, row: Demotion) -> bool:
        """Whether sessions that begin now are scheduled by it."""
        return row.lifted_at is None

    @admin.action(description="Lift: run where declared again, and measure anew", permissions=["lift"])
    def lift(self, request: HttpRequest, rows: QuerySet[Demotion]) -> None:
        """Lift demotions; those of one guardrail belong together."""
        by = cast("User", request.user)
        for row in rows:
            if not demotion.lift(demotion=row, by=by):
                messages.warning(request, f"{row}: lifted already.")
                continue
            LogEntry.objects.log_actions(by.pk, [row], CHANGE, change_message="Lifted.", single_object=True)
            messages.success(request, f"{row}: lifted; sessions that begin from now on run it where it declares.")
