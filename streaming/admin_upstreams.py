"""The admin's page of the gateway's upstreams: added, changed and taken away by operators.

Protects the rule that a key goes in and never comes out: the form shows whether one is stored, never which, and the
history says that it was changed.
"""

from __future__ import annotations

from typing import Any

import httpx
from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from streaming.providers.base import Provider, ProviderError
from streaming.providers.failures import url_problem
from streaming.upstreams import DIALECTS, Upstream, allowed_address

RESERVED = frozenset({*DIALECTS, "scripted"})
"""Names of the environment's providers: a model's name must say which one is meant."""
LIMITS = ("connect_s", "token_s", "total_s")


class UpstreamForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs alone
    """``new_key`` replaces the stored one; empty leaves it."""

    new_key = forms.CharField(
        label="Key",
        required=False,
        strip=True,
        max_length=1_000,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "off"}),
        help_text="It is stored encrypted and never shown again. Empty: the stored one stays.",
    )
    remove_key = forms.BooleanField(label="Forget the stored key", required=False, widget=UnfoldBooleanSwitchWidget())

    class Meta:
        """The key itself is not among them."""

        model = Upstream
        fields = ("name", "dialect", "base_url", "model_names", "fallback", "at_once", *LIMITS, "enabled")

    def clean_name(self) -> str:
        """Not that of a provider which the environment may configure."""
        name = str(self.cleaned_data["name"])
        if name in RESERVED or name in Provider._registry:
            raise forms.ValidationError("The environment's providers have this name.")
        return name

    def clean_base_url(self) -> str:
        """An address to which this server may connect."""
        url = str(self.cleaned_data["base_url"]).strip().rstrip("/")
        if problem := url_problem(url):
            raise forms.ValidationError(f"It {problem}.")
        parsed = httpx.URL(url)
        if parsed.userinfo:
            raise forms.ValidationError("A user or a password has no place in it.")
        try:
            async_to_sync(allowed_address)(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80))
        except ProviderError as error:
            raise forms.ValidationError(f"It cannot be used: {error}.") from None
        return url

    def clean_model_names(self) -> str:
        """At least one."""
        listed = Upstream(model_names=self.cleaned_data["model_names"]).listed
        if not listed or any(len(name) > 200 for name in listed):
            raise forms.ValidationError("One model a line, of at most 200 characters each.")
        return "\n".join(listed)

    def clean_new_key(self) -> str:
        """What can stand in a header."""
        key = str(self.cleaned_data["new_key"])
        if not key.isascii() or not (key.isprintable()) or " " in key:
            raise forms.ValidationError("A key is printable ASCII without blanks.")
        return key

    def save(self, commit: bool = True) -> Any:
        """With the key, if there is a new one."""
        if self.cleaned_data.get("remove_key"):
            self.instance.key = ""
        if new := self.cleaned_data.get("new_key"):
            self.instance.key = new
        return super().save(commit)


@admin.register(Upstream)
class UpstreamAdmin(ModelAdmin):  # type: ignore[misc]  # unfold carries no types
    """What the gateway may ask."""

    form = UpstreamForm
    list_display = ("name", "dialect", "base_url", "fallback", "at_once", "enabled", "key_stored", "changed_at")
    list_filter = ("dialect", "enabled")
    search_fields = ("name", "base_url")
    readonly_fields = ("key_stored", "changed_at")
    fieldsets = (
        (None, {"fields": ("name", "dialect", "base_url", "model_names", "fallback", "at_once", "enabled")}),
        ("Time limits", {"fields": LIMITS}),
        ("Key", {"fields": ("key_stored", "new_key", "remove_key")}),
        ("Record", {"fields": ("changed_at",)}),
    )

    @admin.display(description="Key stored", boolean=True)
    def key_stored(self, upstream: Upstream) -> bool:
        """Whether there is one."""
        return upstream.has_key

    def get_readonly_fields(self, request: HttpRequest, obj: Upstream | None = None) -> tuple[str, ...]:
        """A name is in the audit log: it stays."""
        return self.readonly_fields if obj is None else ("name", *self.readonly_fields)
