"""What the admin's pages have in common: read-only records, and steps that may be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin as UnfoldAdmin

from guardrails.loading import PolicyUnavailable
from guardrails.policy import PolicyError
from guardrails.services import Refused
from guardrails.signing import KeyRefused

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:
    ModelAdmin = UnfoldAdmin

__all__ = ["REFUSALS", "ModelAdmin", "ReadOnlyAdmin", "StepsAdmin", "each", "remember"]

M = TypeVar("M", bound=Model)
REFUSALS = (Refused, PolicyError, PolicyUnavailable, KeyRefused)


class StepsAdmin(ModelAdmin[M]):
    """Rows that steps can be done with, as list actions."""

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list. A step of somebody else's is an error (403), not a list that looks as if nothing was asked."""
        asked = request.POST.getlist("action") if request.method == "POST" else []
        steps = {step if isinstance(step, str) else step.__name__ for step in self.actions or ()}
        if steps.intersection(asked) - set(self.get_actions(request)):
            raise PermissionDenied
        return super().changelist_view(request, extra_context)


class ReadOnlyAdmin(StepsAdmin[M]):
    """Rows to look at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: M | None = None) -> bool:
        """Never."""
        return False


def each(request: HttpRequest, rows: Iterable[M], step: Callable[[M], str]) -> None:
    """Do a step with each row, one after the other; tell what happened to each, and keep it in the row's history."""
    for row in rows:
        try:
            done = step(row)
        except REFUSALS as error:
            messages.error(request, f"{row}: {error}")
            continue
        messages.success(request, done)
        remember(request, row, done)


def remember(request: HttpRequest, row: Model, done: str) -> None:
    """Keep in a row's history what was done, by whom and when."""
    LogEntry.objects.log_actions(
        user_id=cast("User", request.user).pk,
        queryset=[row],
        action_flag=CHANGE,
        change_message=done,
        single_object=True,
    )
