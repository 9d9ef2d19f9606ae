"""The admin's page of shadows: what a second version would have done, next to what the active one did.

Exists apart from the policies' own pages because the answer lies in the sessions, which those know nothing of. Protects
two rules: the page changes a policy through the services alone and asks for ``guardrails.shadow_policyversion`` first;
and a figure on it stands beside what it was counted over.
"""

from __future__ import annotations

from typing import cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from guardrails import services
from guardrails.loading import PolicyUnavailable
from guardrails.models import PolicyVersion
from streaming.models import ShadowedPolicy
from streaming.shadow.record import COMPARISON_WORDS, Comparison
from streaming.shadow.report import EXAMPLES, NEWEST, report, sessions_of

PAGE = "admin:streaming_shadowedpolicy_change"


class BeginForm(forms.Form):
    """Which version is to run, whether it asks what costs, and why."""

    version = forms.ModelChoiceField(
        PolicyVersion.objects.none(), widget=UnfoldAdminSelectWidget(), empty_label=None, label="Version"
    )
    note = forms.CharField(max_length=200, required=False, widget=UnfoldAdminTextInputWidget(), label="Why (optional)")

    asks_paid = forms.BooleanField(
        required=False,
        initial=True,
        widget=UnfoldBooleanWidget(),
        label="Ask paid guardrails",
        help_text="Those that go over the network: judges, moderation endpoints, web hooks. Each is a second call.",
    )

    def __init__(self, policy: ShadowedPolicy, data: object = None) -> None:
        super().__init__(data)  # type: ignore[arg-type]  # a QueryDict or None
        field = cast("forms.ModelChoiceField[PolicyVersion]", self.fields["version"])
        now = [pk for pk in (policy.active_version_id, policy.shadow_version_id) if pk is not None]
        field.queryset = PolicyVersion.objects.filter(policy=policy.pk).exclude(signature="").exclude(pk__in=now)


@admin.register(ShadowedPolicy)
class ShadowAdmin(ModelAdmin):  # type: ignore[misc]  # unfold carries no types
    """One row per policy."""

    list_display = ("name", "active_number", "shadow_number", "began", "difference")
    list_select_related = ("active_version", "shadow_version")
    search_fields = ("name",)

    # -- who may ------------------------------------------------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        """As for the policies."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Whoever sees the policies."""
        return request.user.has_perm("guardrails.view_policy")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """No."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Not by a form of fields."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """No."""
        return False

    # -- the list -----------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[ShadowedPolicy]:
        """Policies that something runs under."""
        return ShadowedPolicy.objects.exclude(active_version=None).order_by("name")

    @admin.display(description="Active")
    def active_number(self, policy: ShadowedPolicy) -> str:
        """The active version's number."""
        return f"version {policy.active_version.number}" if policy.active_version else "none"

    @admin.display(description="Shadow")
    def shadow_number(self, policy: ShadowedPolicy) -> str:
        """The shadow's number."""
        return f"version {policy.shadow_version.number}" if policy.shadow_version else "none"

    @admin.display(description="Since")
    def began(self, policy: ShadowedPolicy) -> object:
        """When the present shadow began."""
        change = policy.shadow_changes.first() if policy.shadow_version_id else None
        return change.changed_at if change else None

    @admin.display(description="Difference")
    def difference(self, policy: ShadowedPolicy) -> str:
        """Of the present shadow, in sessions."""
        change = policy.shadow_changes.select_related("version", "policy").first() if policy.shadow_version_id else None
        if change is None:
            return ""
        seen = sessions_of(change)
        only_active = seen.filter(shadow_comparison=Comparison.ONLY_ACTIVE.value).count()
        only_shadow = seen.filter(shadow_comparison=Comparison.ONLY_SHADOW.value).count()
        return f"{only_active:,} only active, {only_shadow:,} only shadow, of {seen.count():,}"

    # -- the page -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """The page's buttons, before the addresses that take anything for a key."""
        site = self.admin_site
        own = [
            path("<int:pk>/begin/", site.admin_view(self.begin), name="streaming_shadowedpolicy_begin"),
            path("<int:pk>/paid/", site.admin_view(self.paid), name="streaming_shadowedpolicy_paid"),
            path("<int:pk>/end/", site.admin_view(self.end), name="streaming_shadowedpolicy_end"),
        ]
        return [*own, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: object = None
    ) -> HttpResponse:
        """The comparison."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        policy = self._policy(object_id)
        may = self._may(request)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Shadow of {policy.name}",
            "opts": self.opts,
            "original": policy,
            "policy": policy,
            "report": report(policy),
            "may": may,
            "form": BeginForm(policy) if may else None,
            "sees_sessions": request.user.has_perm("streaming.view_auditsession"),
            "newest": NEWEST,
            "at_most": EXAMPLES,
            "words": COMPARISON_WORDS,
        }
        return TemplateResponse(request, "admin/streaming/shadowedpolicy/page.html", context)

    def begin(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let a version run as shadow."""
        policy = self._asked(request, pk)
        if isinstance(policy, HttpResponse):
            return policy
        form = BeginForm(policy, request.POST)
        if not form.is_valid():
            messages.error(request, "Choose a signed version that is neither active nor the shadow.")
            return self._back(policy)
        version = form.cleaned_data["version"]
        try:
            services.set_shadow(
                version=version,
                by=cast("User", request.user),
                note=form.cleaned_data["note"],
                asks_paid=form.cleaned_data["asks_paid"],
            )
        except (services.Refused, PolicyUnavailable) as error:
            messages.error(request, f"{version}: {error}")
        else:
            messages.success(request, f"{version} runs as shadow now; answers that have begun go on without it.")
        return self._back(policy)

    def paid(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let the shadow that runs ask paid guardrails, or not."""
        policy = self._asked(request, pk)
        if isinstance(policy, HttpResponse):
            return policy
        version, asks = policy.shadow_version, request.POST.get("asks_paid") == "yes"
        if version is None:
            messages.warning(request, f"{policy.name} has no shadow.")
            return self._back(policy)
        try:
            services.set_shadow(version=version, by=cast("User", request.user), asks_paid=asks)
        except (services.Refused, PolicyUnavailable) as error:
            messages.error(request, f"{version}: {error}")
        else:
            done = "asks" if asks else "does not ask"
            messages.success(request, f"{version} {done} paid guardrails from now on; the comparison begins anew.")
        return self._back(policy)

    def end(self, request: HttpRequest, pk: int) -> HttpResponse:
        """End the shadow."""
        policy = self._asked(request, pk)
        if isinstance(policy, HttpResponse):
            return policy
        if services.clear_shadow(policy=policy, by=cast("User", request.user)) is None:
            messages.warning(request, f"{policy.name} has no shadow.")
        else:
            messages.success(request, f"The shadow of {policy.name} has ended; answers that have begun keep theirs.")
        return self._back(policy)

    def _asked(self, request: HttpRequest, pk: int) -> ShadowedPolicy | HttpResponse:
        if not self._may(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        return self._policy(str(pk))

    def _policy(self, pk: str) -> ShadowedPolicy:
        rows = ShadowedPolicy.objects.select_related("active_version__policy", "shadow_version__policy")
        return get_object_or_404(rows, pk=int(pk) if pk.isdecimal() else 0)

    def _may(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request) and request.user.has_perm("guardrails.shadow_policyversion")

    def _back(self, policy: ShadowedPolicy) -> HttpResponse:
        return HttpResponseRedirect(reverse(PAGE, args=[policy.pk]))
