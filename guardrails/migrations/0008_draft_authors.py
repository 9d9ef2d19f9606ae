"""Everybody who wrote a part of what was published, for the four-eyes rule; as fixed as the rest of a publication."""

from __future__ import annotations

import importlib

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

_before = importlib.import_module("guardrails.migrations.0006_written_by")
_first = importlib.import_module("guardrails.migrations.0005_publications")
SQLITE = _before.SQLITE.replace("WHEN ", "WHEN NEW.authors IS NOT OLD.authors OR ")
POSTGRESQL = _before.POSTGRESQL.replace("  IF ", "  IF NEW.authors::text IS DISTINCT FROM OLD.authors::text OR ")


def forwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """The triggers of 0006 once more, with the new column among the frozen ones."""
    _first.backwards(apps, schema_editor)
    vendor = schema_editor.connection.vendor
    if vendor == "sqlite":
        schema_editor.execute(SQLITE)
    elif vendor == "postgresql":
        schema_editor.execute(POSTGRESQL)


class Migration(migrations.Migration):
    dependencies = [("guardrails", "0007_rollouts")]
    operations = [
        # Read from the end when it is undone: the triggers go, then the column, then those of 0006 come back.
        migrations.RunPython(migrations.RunPython.noop, _before.forwards),
        migrations.AddField(
            model_name="policy",
            name="draft_authors",
            field=models.JSONField(blank=True, default=list, editable=False),
        ),
        migrations.AddField(
            model_name="publication",
            name="authors",
            field=models.JSONField(default=list, help_text="Ids of all who saved a part of the draft."),
        ),
        migrations.RunPython(forwards, _first.backwards),
    ]
