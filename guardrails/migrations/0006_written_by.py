"""Who wrote what was published, for the four-eyes rule; as fixed as the rest of a publication."""

from __future__ import annotations

import importlib

import django.db.models.deletion
from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

_before = importlib.import_module("guardrails.migrations.0005_publications")
SQLITE = _before.SQLITE.replace("WHEN ", "WHEN NEW.written_by_id IS NOT OLD.written_by_id OR ")
POSTGRESQL = _before.POSTGRESQL.replace("  IF ", "  IF NEW.written_by_id IS DISTINCT FROM OLD.written_by_id OR ")


def forwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """The triggers of 0005 once more, with the new column among the frozen ones."""
    _before.backwards(apps, schema_editor)
    vendor = schema_editor.connection.vendor
    if vendor == "sqlite":
        schema_editor.execute(SQLITE)
    elif vendor == "postgresql":
        schema_editor.execute(POSTGRESQL)


def backwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _before.backwards(apps, schema_editor)
    _before.forwards(apps, schema_editor)


class Migration(migrations.Migration):
    dependencies = [
        ("guardrails", "0005_publications"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.AddField(
            model_name="publication",
            name="written_by",
            field=models.ForeignKey(
                blank=True,
                help_text="Who saved the draft last.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.RunPython(forwards, backwards),
    ]
