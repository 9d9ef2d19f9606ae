"""API keys: made here with the key shown once, changed in what they may do, revoked; never shown again."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from guardrails import services
from guardrails.admin.base import StepsAdmin, each
from guardrails.api_keys import usable_name
from guardrails.models import ApiKey, Policy, Scope
from guardrails.origins import origin
from guardrails.stating import Refused


class ApiKeyForm(forms.ModelForm[ApiKey]):
    """What a key may do."""

    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=UnfoldAdminCheckboxSelectMultipleWidget)
    origins = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Browser origins that may use it, one a line, such as https://shop.example",
    )

    class Meta:
        model = ApiKey
        fields: ClassVar[list[str]] = [
            "name", "scopes", "policy", "origins", "calls_per_minute", "updates_per_second", "answers_at_once"
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["origins"] = "\n".join(self.instance.origins)
        for limit in ("calls_per_minute", "updates_per_second", "answers_at_once"):
            self.fields[limit].validators.append(MinValueValidator(1))

    def clean_name(self) -> str:
        """A name that is stored as it is."""
        name = str(self.cleaned_data["name"])
        try:
            return name if name == self.instance.name else usable_name(name)
        except Refused as error:
            raise ValidationError(f"{error}.") from None

    def clean_policy(self) -> str:
        """A policy that exists, or none."""
        name = str(self.cleaned_data["policy"])
        if name and not Policy.objects.filter(name=name).exists():
            raise ValidationError(f"There is no policy “{name}”.")
        return name

    def clean_origins(self) -> list[str]:
        """One a line."""
        try:
            return [origin(written) for written in str(self.cleaned_data["origins"]).split()]
        except ValueError as error:
            raise ValidationError(str(error)) from None


@admin.register(ApiKey)
class ApiKeyAdmin(StepsAdmin[ApiKey]):
    """API keys."""

    form = ApiKeyForm
    list_display = ["name", "prefix", "scopes", "policy", "created_at", "last_used_at", "revoked_at"]
    search_fields = ["name", "prefix"]
    actions = ["revoke"]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        """What happened to a key; nothing yet for a new one."""
        return () if obj is None else ("prefix", "created_at", "created_by", "last_used_at", "revoked_at")

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Never: sessions name the key that began them. A key is revoked."""
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """For the action below."""
        return request.user.has_perm("guardrails.change_apikey")

    def save_model(self, request: HttpRequest, obj: ApiKey, form: forms.ModelForm[ApiKey], change: bool) -> None:
        """A new key is made by the service and shown this once."""
        asked = form.cleaned_data
        if change:
            services.change_api_key(key=obj, **asked)
            return
        made, plaintext = services.create_api_key(**asked, by=cast("User", request.user))
        obj.pk = made.pk
        obj.refresh_from_db()
        messages.warning(request, f"The key of {made.name}, shown this once: {plaintext}")

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, rows: QuerySet[ApiKey]) -> None:
        """Close keys."""
        each(request, rows, lambda key: f"{services.revoke_api_key(key=key)} revoked")
