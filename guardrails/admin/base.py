"""What the admin's pages have in common: read-only records, and steps that may be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.options import get_content_type_for_model
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import PAGE_VAR
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from unfold.admin import ModelAdmin as UnfoldAdmin

from guardrails.command_steps import command_steps
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
HISTORY_LINES = 100
"""On one page."""
REFUSALS = (Refused, PolicyError, PolicyUnavailable, KeyRefused)


@dataclass(frozen=True, slots=True)
class _Who:
    """Who took a step, as the template of a history asks."""

    get_username: str
    get_full_name: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a history, as its template asks."""

    action_time: datetime
    user: _Who
    get_change_message: str


def _history(model: type[Model], pk: str) -> list[_Line]:
    """Both halves, by time."""
    own = LogEntry.objects.filter(object_id=pk, content_type=get_content_type_for_model(model)).select_related("user")
    lines = [
        _Line(
            entry.action_time, _Who(entry.user.get_username(), entry.user.get_full_name()), entry.get_change_message()
        )
        for entry in own.order_by("action_time", "pk")
    ]
    for step in command_steps(model=model, pk=pk) if pk.isdecimal() else ():
        who = "command line" if step.by is None else f"{step.by.get_username()}, on the command line"
        lines.append(_Line(step.at, _Who(who), step.done))
    return sorted(lines, key=lambda line: line.action_time)


class StepsAdmin(ModelAdmin[M]):
    """Rows that steps can be done with, as list actions; their history has the command line's steps as well."""

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What was done on these pages and on the command line, the oldest first."""
        lines = self.paged(request, _history(self.model, unquote(object_id)))
        return super().history_view(request, object_id, {**lines, **(extra_context or {})})

    def paged(self, request: HttpRequest, lines: list[_Line]) -> dict[str, Any]:
        """A page of a history, as its template wants it."""
        paginator = self.get_paginator(request, cast("Any", lines), HISTORY_LINES)
        page = paginator.get_page(request.GET.get(PAGE_VAR, 1))
        return {
            "action_list": page,
            "page_range": paginator.get_elided_page_range(page.number),
            "pagination_required": paginator.count > HISTORY_LINES,
        }

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
