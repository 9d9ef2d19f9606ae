"""A client's name for a conversation leads to one conversation, also when two first calls come at once."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Count


def leave_one_of_each_name(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Of several with one name the newest keeps it: that is where later calls went. What is on record stays as it is."""
    conversations = apps.get_model("streaming", "Conversation").objects.exclude(external_id="").order_by()
    names = conversations.values("client", "external_id").annotate(rows=Count("pk")).filter(rows__gt=1)
    for client, name in list(names.values_list("client", "external_id")):
        same = conversations.filter(client=client, external_id=name).order_by("-created", "pk")
        conversations.filter(pk__in=list(same.values_list("pk", flat=True)[1:])).update(external_id="")


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0020_figures_index"),
    ]

    operations = [
        migrations.RunPython(leave_one_of_each_name, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="conversation",
            constraint=models.UniqueConstraint(
                condition=models.Q(("external_id", ""), _negated=True),
                fields=("client", "external_id"),
                name="conversation_once_per_name",
            ),
        ),
    ]
