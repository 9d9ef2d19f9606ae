"""Rollouts: what ran for a part of the conversations, and the page on which one is begun or its share changed.

Exists because who puts versions to work works here, not on the machine. Protects the rule that whoever may activate,
and nobody else, decides who runs what; each step stays in the history of the version and of the rollout.
"""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from guardrails import services
from guardrails.admin.base import REFUSALS, ReadOnlyAdmin, each, remember
from guardrails.models import PolicyVersion, Rollout

MAY = "guardrails.activate_policyversion"
PAGE = "admin:guardrails_rollout_of"
VERSION_PAGE = "admin:guardrails_policyversion_change"


class BeginForm(forms.Form):
    """For whom, and when it ends by itself. Shares are percentages."""

    percent = forms.FloatField(label="Share of the conversations, %", min_value=0, max_value=100, initial=10)
    groups = forms.ModelMultipleChoiceField(Group.objects.none(), label="Groups that all run it", required=False)
    max_errors = forms.FloatField(
        label="Roll back when more than so many % of the sessions fail", min_value=0, max_value=100, required=False
    )
    max_would_have = forms.FloatField(
        label="Roll back when MONITOR guardrails would act in more than so many % of the sessions",
        min_value=0, max_value=100, required=False,
    )  # fmt: skip
    sample = forms.IntegerField(label="Limits count once so many sessions have ended", min_value=1, initial=50)
    note = forms.CharField(label="Why", max_length=200, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cast("forms.ModelMultipleChoiceField[Group]", self.fields["groups"]).queryset = Group.objects.order_by("name")

    def take(self, version: PolicyVersion, by: User) -> tuple[Rollout, str]:
        """Begin it. Raises what ``services.begin_rollout`` raises."""
        said = self.cleaned_data
        rollout = services.begin_rollout(
            version=version,
            percent=said["percent"],
            groups=[group.name for group in said["groups"]],
            max_errors=_share(said["max_errors"]),
            max_would_have=_share(said["max_would_have"]),
            sample=said["sample"],
            by=by,
            note=said["note"],
        )
        return rollout, f"{version} is rolled out to {for_whom(rollout)}"


class ChangeForm(forms.Form):
    """Another share, of what is being rolled out."""

    percent = forms.FloatField(label="Share of the conversations, %", min_value=0, max_value=100)

    def take(self, version: PolicyVersion, by: User) -> tuple[Rollout, str]:
        """Change it. Raises what ``services.change_rollout`` raises."""
        rollout = services.change_rollout(policy=version.policy, percent=self.cleaned_data["percent"], by=by)
        return rollout, f"{version} is rolled out to {for_whom(rollout)} from now on"


@admin.register(Rollout)
class RolloutAdmin(ReadOnlyAdmin[Rollout]):
    """What ran for a part of the conversations, and how it ended."""

    list_display = [
        "version",
        "outcome",
        "share",
        "whole",
        "limits",
        "started_at",
        "started_by",
        "ended_at",
        "ended_why",
    ]
    list_filter = ["policy", "outcome"]
    list_select_related = ["activation__version__policy", "started_by"]
    actions = ["change_share", "end"]

    def has_roll_permission(self, request: HttpRequest) -> bool:
        """For the actions below."""
        return request.user.has_perm(MAY)

    def get_urls(self) -> list[URLPattern]:
        """The page of a version's rollout, before the addresses that take anything for a key."""
        own = path("of/<int:version_id>/", self.admin_site.admin_view(self.of), name="guardrails_rollout_of")
        return [own, *super().get_urls()]

    def of(self, request: HttpRequest, version_id: int) -> HttpResponse:
        """Begin the rollout of a version, or change its share; for those who may activate versions."""
        if not request.user.has_perm(MAY):
            raise PermissionDenied
        version = get_object_or_404(PolicyVersion.objects.select_related("policy__rollout__activation"), pk=version_id)
        running = version.policy.rollout
        own = running is not None and running.activation.version_id == version.pk
        given = request.POST if request.method == "POST" else None
        initial = {"percent": running.percent} if own and running is not None else None
        form = ChangeForm(given, initial=initial) if own else BeginForm(given)
        if form.is_valid():
            try:
                rollout, done = form.take(version, cast("User", request.user))
            except REFUSALS as error:
                form.add_error(None, str(error))
            else:
                remember(request, version, done)
                remember(request, rollout, done)
                messages.success(request, done)
                return HttpResponseRedirect(reverse(VERSION_PAGE, args=[version.pk]))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Roll out {version}",
            "opts": self.opts,
            "version": version,
            "form": form,
            "running": running if own else None,
        }
        return TemplateResponse(request, "admin/guardrails/rollout/of.html", context)

    @admin.action(description="Change the share", permissions=["roll"])
    def change_share(self, request: HttpRequest, rows: QuerySet[Rollout]) -> HttpResponse | None:
        """To the page of the one that is chosen."""
        return to_page(request, [rollout.activation.version for rollout in rows])

    @admin.action(description="End: new sessions run the active version", permissions=["roll"])
    def end(self, request: HttpRequest, rows: QuerySet[Rollout]) -> None:
        """End rollouts that run."""

        def stop(rollout: Rollout) -> str:
            by = cast("User", request.user)
            if services.end_rollout(policy=rollout.policy, by=by, why="Ended by hand.", only=rollout.pk) is None:
                raise services.Refused("it does not run any more")
            done = f"{rollout.activation.version} is not rolled out any more"
            remember(request, rollout.activation.version, done)
            return done

        each(request, rows, stop)

    @admin.display(description="Version")
    def version(self, rollout: Rollout) -> str:
        """Which version of which policy."""
        return str(rollout.activation.version)

    @admin.display(description="Share", ordering="percent")
    def share(self, rollout: Rollout) -> str:
        """Of the conversations."""
        return f"{rollout.percent:g} %"

    @admin.display(description="Groups")
    def whole(self, rollout: Rollout) -> str:
        """Whose members all run it."""
        return ", ".join(map(str, rollout.groups)) or "none"

    @admin.display(description="Rolled back above")
    def limits(self, rollout: Rollout) -> str:
        """The shares of sessions that end it by itself."""
        limits = {"errors": rollout.max_errors, "would-haves": rollout.max_would_have}
        told = [f"{100 * limit:g} % {what}" for what, limit in limits.items() if limit is not None]
        return ", ".join(told) or "no limit"


def to_page(request: HttpRequest, versions: list[PolicyVersion]) -> HttpResponse | None:
    """Where the rollout of a version is begun or changed; one at a time."""
    if len(versions) != 1:
        messages.error(request, "Choose one: each rollout is set up by itself.")
        return None
    return HttpResponseRedirect(reverse(PAGE, args=[versions[0].pk]))


def for_whom(rollout: Rollout) -> str:
    """Who runs it, in words."""
    groups = [f"the group {name}" for name in rollout.groups]
    return " and ".join([f"{rollout.percent:g} % of the conversations", *groups])


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
