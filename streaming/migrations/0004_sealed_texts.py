"""Prompts, answers and what stands beside them are encrypted in their columns."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

import streaming.texts


def encrypt_what_is_there(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for message in apps.get_model("streaming", "Message").objects.iterator():
        message.save(update_fields=["content", "metadata"])


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0003_rollout"),
    ]

    operations = [
        migrations.AlterField(
            model_name="message",
            name="content",
            field=streaming.texts.SealedTextField(blank=True),
        ),
        migrations.AlterField(
            model_name="message",
            name="metadata",
            field=streaming.texts.SealedJSONField(blank=True, default=dict),
        ),
        migrations.RunPython(encrypt_what_is_there, migrations.RunPython.noop),
    ]
