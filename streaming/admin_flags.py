"""The admin's page of rollout flags: streaming is rolled out here, and switched off here at once.

Exists because waffle's own pages are made for the plain admin and speak of users where our percentage is one of
conversations. What waffle logs for its two bulk actions is logged here as well: they are its functions.
"""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Field
from django.forms import Field as FormField
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from waffle.admin import disable_for_all, enable_for_all
from waffle.models import Sample, Switch

from streaming.flags import RolloutFlag

# Nothing here reads switches or samples: pages for them would change nothing.
admin.site.unregister(Switch)
admin.site.unregister(Sample)


@admin.register(RolloutFlag)
class RolloutFlagAdmin(ModelAdmin):  # type: ignore[misc]  # unfold carries no types
    """Who streams, and which requests; the list shows at a glance whether anybody does."""

    list_display = ("name", "everyone", "percent", "stage", "superusers", "staff", "authenticated", "modified")
    list_filter = ("everyone", "stage")
    search_fields = ("name", "note")
    actions = (enable_for_all, disable_for_all)
    autocomplete_fields = ("users",)
    readonly_fields = ("created", "modified")
    fieldsets = (
        (None, {"fields": ("name", "everyone", "stage", "note")}),
        ("Where everyone is unknown", {
            "fields": ("percent", "users", "groups", "superusers", "staff", "authenticated", "testing"),
        }),
        ("Record", {"fields": ("created", "modified")}),
    )  # fmt: skip

    class Media:
        """The box that searches users has a name for a screen reader."""

        js = ("admin-look/named.js",)

    def formfield_for_dbfield(
        self, db_field: Field[object, object], request: HttpRequest, **kwargs: object
    ) -> FormField | None:
        """Waffle's percentage is one of users, ours is one of conversations."""
        field: FormField | None = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "percent" and field is not None:
            field.help_text = "0.0 to 99.9: the share of conversations; each one always gets the same answer."
        return field
