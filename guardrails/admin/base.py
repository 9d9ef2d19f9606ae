"""What the admin's pages have in common: read-only records, and steps that may be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar, cast

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.db.models import Model
from django.http import HttpRequest
from unfold.admin import ModelAdmin as UnfoldAdmin

from guardrails.loading import PolicyUnavailable
from guardrails.policy import PolicyError
from guardrails.services import Refused
from guardrails.signing import KeyRefused

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:
    ModelAdmin = UnfoldAdmin

__all__ = ["REFUSALS", "ModelAdmin", "ReadOnlyAdmin", "each"]

M = TypeVar("M", bound=Model)
REFUSALS = (Refused, PolicyError, PolicyUnavailable, KeyRefused)


class ReadOnlyAdmin(ModelAdmin[M]):
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
        LogEntry.objects.log_actions(
            user_id=cast("User", request.user).pk,
            queryset=[row],
            action_flag=CHANGE,
            change_message=done,
            single_object=True,
        )
