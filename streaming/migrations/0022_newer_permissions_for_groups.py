"""Groups that an installation made before some models existed get those models' permissions, once.

New installations make their groups with all of them (``streaming.roles``). What an administrator takes out afterwards
stays out: this runs a single time, and gives nothing that the groups had from the beginning.
"""

from django.contrib.auth.management import create_permissions
from django.db import migrations

GRANTED = {
    "Author": ("guardrails.view_rollout",),
    "Signer": ("guardrails.view_rollout",),
    "Operator": (
        "guardrails.view_rollout",
        "streaming.view_deferredcheck",
        "streaming.retry_deferredcheck",
        "streaming.view_configuredprovider",
        "streaming.view_upstream",
        "streaming.add_upstream",
        "streaming.change_upstream",
        "streaming.delete_upstream",
    ),
    "Reviewer": ("guardrails.view_rollout",),
    "Auditor": ("guardrails.view_rollout", "streaming.view_deferredcheck", "streaming.view_configuredprovider"),
}


def grant(apps, schema_editor):
    """Add what is newer to the groups that are there."""
    using = schema_editor.connection.alias
    groups = apps.get_model("auth", "Group").objects.using(using).filter(name__in=GRANTED)
    if not groups:
        return
    for label in ("guardrails", "streaming"):  # they come after all migrations otherwise
        config = apps.get_app_config(label)
        config.models_module = True
        create_permissions(config, apps=apps, verbosity=0, using=using)
        config.models_module = None
    permissions = apps.get_model("auth", "Permission").objects.using(using)
    for group in groups:
        for name in GRANTED[group.name]:
            app, codename = name.split(".")
            group.permissions.add(*permissions.filter(content_type__app_label=app, codename=codename))


class Migration(migrations.Migration):
    """Data alone."""

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("guardrails", "0009_command_steps"),
        ("streaming", "0021_one_conversation_of_a_name"),
    ]

    operations = [migrations.RunPython(grant, migrations.RunPython.noop, elidable=True)]
