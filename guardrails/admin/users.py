"""Users and groups in the admin's theme; Django registers them without it."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from guardrails.admin.base import ModelAdmin

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class ThemedUserAdmin(UserAdmin[User], ModelAdmin[User]):
    """Who may sign in."""

    # Django's two boxes with arrows name parts that may bear no name (axe: aria-prohibited-attr); a list has none.
    filter_horizontal = ()

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class ThemedGroupAdmin(GroupAdmin, ModelAdmin[Group]):
    """Permissions that belong together."""

    # Django's two boxes with arrows name parts that may bear no name (axe: aria-prohibited-attr); a list has none.
    filter_horizontal = ()
