"""Policies and their versions: edit a draft, publish, sign, activate.

The steps are list actions (a POST with a token), never links. Whether a signature is good is verified when the page is
shown, not read from a column.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.timezone import localtime

from guardrails import services
from guardrails.admin.base import ReadOnlyAdmin, StepsAdmin, each, remember
from guardrails.admin.differences import comparison
from guardrails.admin.rollouts import to_page
from guardrails.admin.rules import views
from guardrails.admin.rules.envelope import blank_cards, blank_items
from guardrails.admin.rules.form import PolicyForm
from guardrails.admin.steps import Step, steps_of
from guardrails.models import Activation, Policy, PolicyVersion, Publication
from guardrails.publication import report_lines
from guardrails.selectors import version_state

SHADOW_PAGE = "admin:streaming_shadowedpolicy_change"
DIFF_PAGE = "admin:guardrails_policy_diff"


def _user(request: HttpRequest) -> User:
    return cast("User", request.user)


@admin.register(Policy)
class PolicyAdmin(StepsAdmin[Policy]):
    """Policies; publishing takes the draft."""

    form = PolicyForm
    fields = ["draft"]
    list_display = ["name", "description", "active_version", "state", "shadow", "has_draft", "differences"]
    list_select_related = ["active_version__policy", "shadow_version__policy"]
    search_fields = ["name", "description"]
    actions = ["publish"]

    def has_delete_permission(self, request: HttpRequest, obj: Policy | None = None) -> bool:
        """Never: sessions name the policy that they ran under."""
        return False

    def has_publish_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm("guardrails.publish_policy")

    def save_model(self, request: HttpRequest, obj: Policy, form: forms.ModelForm[Policy], change: bool) -> None:
        """Save the draft the one way there is."""
        saved = services.save_draft(document=form.cleaned_data["draft"], by=_user(request))
        obj.pk = saved.pk
        obj.refresh_from_db()
        for failure in cast("PolicyForm", form).facts.failures:
            messages.warning(request, f"Saved, but it cannot be published like this: {failure}")

    def get_urls(self) -> list[URLPattern]:
        """The rule form's own addresses, before the ones that take anything for a key."""
        site = self.admin_site
        own = [
            path("lint/", site.admin_view(self.lint), name="guardrails_policy_lint"),
            path("<int:pk>/file/", site.admin_view(self.file), name="guardrails_policy_file"),
            path("<int:pk>/diff/", site.admin_view(self.diff), name="guardrails_policy_diff"),
        ]
        return [*own, *super().get_urls()]

    def lint(self, request: HttpRequest) -> HttpResponse:
        """Examine what is being typed; for those who could save it."""
        if not (self.has_add_permission(request) or self.has_change_permission(request)):
            raise PermissionDenied
        return views.lint(request)

    def file(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The draft as a policy file; for those who see the page."""
        policy = get_object_or_404(Policy.objects.select_related("active_version"), pk=pk)
        if not self.has_view_permission(request, policy):
            raise PermissionDenied
        return views.policy_file(policy)

    def diff(self, request: HttpRequest, pk: int) -> HttpResponse:
        """What differs between two versions, or a version and the draft; for those who see both pages."""
        policy = get_object_or_404(Policy.objects.select_related("active_version", "shadow_version"), pk=pk)
        if not (self.has_view_permission(request, policy) and request.user.has_perm("guardrails.view_policyversion")):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": f"What differs in {policy.name}",
            "opts": self.opts,
            "original": policy,
            "policy": policy,
            **comparison(policy, request.GET),
        }
        return TemplateResponse(request, "admin/guardrails/policy/diff.html", context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With an empty item for all that can be added."""
        context |= {"blank_cards": blank_cards(), "blank_items": list(blank_items())}
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="State")
    def state(self, policy: Policy) -> str:
        """Of the active version, verified now."""
        return "no active version" if policy.active_version is None else version_words(policy.active_version)

    @admin.display(description="Shadow")
    def shadow(self, policy: Policy) -> str:
        """What runs beside the active version, with the way to what it differs in."""
        if policy.shadow_version is None:
            return "none"
        trouble = version_state(policy.shadow_version)[1]
        words = f"version {policy.shadow_version.number}" + (f", unusable: {trouble}" if trouble else "")
        return format_html('<a href="{}">{}</a>', reverse(SHADOW_PAGE, args=[policy.pk]), words)

    @admin.display(description="Differences")
    def differences(self, policy: Policy) -> str:
        """The way to what differs between its versions."""
        return format_html('<a href="{}">Compare</a>', reverse(DIFF_PAGE, args=[policy.pk]))

    @admin.display(boolean=True, description="Draft")
    def has_draft(self, policy: Policy) -> bool:
        """Whether something waits for being published."""
        return policy.draft is not None

    @admin.action(description="Publish the draft as the next version", permissions=["publish"])
    def publish(self, request: HttpRequest, rows: QuerySet[Policy]) -> None:
        """Freeze drafts."""

        def freeze(policy: Policy) -> str:
            version = services.publish(policy=policy, by=_user(request))
            remember(request, version, f"{version} published")
            return f"{version} published"

        each(request, rows, freeze)


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnlyAdmin[PolicyVersion]):
    """Versions as they were published; signing and activating are all that can be done with them."""

    list_display = ["__str__", "state", "active", "shadow", "published_at", "published_by", "signed_at", "signed_by"]
    list_filter = ["policy"]
    list_select_related = ["policy__active_version", "published_by", "signed_by"]
    fields = readonly_fields = (
        "policy",
        "number",
        "state",
        "active",
        "shadow",
        "differences",
        "digest",
        "steps",
        "notes",
        "report",
        "text",
        "signature",
    )
    actions = ["sign", "activate", "roll_out", "run_as_shadow", "end_shadow"]

    class Media:
        css: ClassVar[dict[str, list[str]]] = {"all": ["admin-rules/version.css"]}

    def has_sign_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm("guardrails.sign_policyversion")

    def has_activate_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm("guardrails.activate_policyversion")

    def has_shadow_permission(self, request: HttpRequest) -> bool:
        """For the actions below."""
        return request.user.has_perm("guardrails.shadow_policyversion")

    @admin.display(description="State")
    def state(self, version: PolicyVersion) -> str:
        """Verified now."""
        return version_words(version)

    @admin.display(boolean=True, description="Active")
    def active(self, version: PolicyVersion) -> bool:
        """Whether sessions that start now run under it."""
        return version.policy.active_version_id == version.pk

    @admin.display(boolean=True, description="Shadow")
    def shadow(self, version: PolicyVersion) -> bool:
        """Whether it runs in MONITOR beside the active one."""
        return version.policy.shadow_version_id == version.pk

    @admin.display(description="Differences")
    def differences(self, version: PolicyVersion) -> str:
        """The way to what differs from what is active, or for the active one from what was before."""
        address = reverse(DIFF_PAGE, args=[version.policy_id])
        active = version.policy.active_version
        if active is not None and active.pk != version.pk:
            other, words = active.number, f"What differs from version {active.number}, which is active"
        elif version.number > 1:
            other, words = version.number - 1, f"What differs from version {version.number - 1}"
        else:
            return format_html('<a href="{}">Compare versions</a>', address)
        return format_html('<a href="{}?old={}&amp;new={}">{}</a>', address, other, version.number, words)

    @admin.display(description="Steps")
    def steps(self, version: PolicyVersion) -> str:
        """Every step on record, the oldest first, with who and when."""
        return format_html(
            '<ol class="version-steps">{}</ol>',
            format_html_join("", "<li>{}{} by <strong>{}</strong>{}</li>", map(_step_words, steps_of(version))),
        )

    @admin.display(description="Publication report")
    def report(self, version: PolicyVersion) -> str:
        """What publication found out, in words."""
        publication = Publication.objects.filter(pk=version.pk).first()
        if publication is None:
            return "It was published before there were reports."
        return format_html('<pre class="version-text">{}</pre>', "\n".join(report_lines(publication.report)))

    @admin.display(description="Document")
    def text(self, version: PolicyVersion) -> str:
        """The document, one key a line."""
        try:
            document = version.document
        except (KeyError, TypeError, ValueError):
            return "It cannot be read; it was altered."
        return format_html('<pre class="version-text">{}</pre>', json.dumps(document, indent=2, ensure_ascii=False))

    @admin.action(description="Sign", permissions=["sign"])
    def sign(self, request: HttpRequest, rows: QuerySet[PolicyVersion]) -> None:
        """Sign versions."""
        each(request, rows, lambda version: f"{services.sign(version=version, by=_user(request))} signed")

    @admin.action(description="Activate (or roll back to)", permissions=["activate"])
    def activate(self, request: HttpRequest, rows: QuerySet[PolicyVersion]) -> None:
        """Put versions to work."""

        def put_to_work(version: PolicyVersion) -> str:
            active = Policy.objects.select_related("active_version").get(pk=version.policy_id).active_version
            if active is not None and version.number < active.number:
                services.rollback(policy=version.policy, number=version.number, by=_user(request))
                return f"{version} activated: rolled back from version {active.number}"
            services.activate(version=version, by=_user(request))
            return f"{version} activated"

        each(request, rows, put_to_work)

    @admin.action(description="Roll out to a part of the conversations", permissions=["activate"])
    def roll_out(self, request: HttpRequest, rows: QuerySet[PolicyVersion]) -> HttpResponse | None:
        """To the page where it is said for whom."""
        return to_page(request, list(rows))

    @admin.action(description="Run as shadow beside the active version", permissions=["shadow"])
    def run_as_shadow(self, request: HttpRequest, rows: QuerySet[PolicyVersion]) -> None:
        """Let versions run in MONITOR; a policy has one shadow at a time."""

        def begin(version: PolicyVersion) -> str:
            change = services.set_shadow(version=version, by=_user(request))
            return f"{version} runs as shadow" if change else f"{version} is the shadow already"

        each(request, rows, begin)

    @admin.action(description="End as shadow", permissions=["shadow"])
    def end_shadow(self, request: HttpRequest, rows: QuerySet[PolicyVersion]) -> None:
        """End the shadows among the chosen versions."""

        def end(version: PolicyVersion) -> str:
            if version.policy.shadow_version_id != version.pk:
                raise services.Refused("it is not the shadow")
            services.clear_shadow(policy=version.policy, by=_user(request))
            return f"{version} is not the shadow any more"

        each(request, rows, end)


@admin.register(Activation)
class ActivationAdmin(ReadOnlyAdmin[Activation]):
    """What was put to work when."""

    list_display = ["version", "serial", "cohort", "activated_at", "activated_by", "note"]
    list_filter = ["policy"]
    list_select_related = ["version__policy", "activated_by"]


def _step_words(step: Step) -> tuple[str, str, str, str]:
    when = date_format(localtime(step.at), ", j M Y, H:i:s,") if step.at else ""
    return step.what, when, step.by or "nobody on record", f" ({step.note})" if step.note else ""


def version_words(version: PolicyVersion) -> str:
    """A version's state in words, verified now."""
    if not version.signature:
        return "not signed"
    runs, trouble = version_state(version)
    return "signed, verified" if runs else f"unusable: {trouble}"
