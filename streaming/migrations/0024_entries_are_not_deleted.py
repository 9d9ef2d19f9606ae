"""PostgreSQL refuses to delete an entry of the audit log, as it refuses to alter one.

Emptying whole tables there is TRUNCATE, which no row's trigger sees. SQLite empties them by DELETE (ADR 0106).
"""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

REFUSAL = "an entry of the audit log cannot be deleted"
POSTGRESQL = f"""
CREATE FUNCTION streaming_auditentry_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$;
CREATE TRIGGER streaming_auditentry_kept BEFORE DELETE ON streaming_auditentry
FOR EACH ROW EXECUTE FUNCTION streaming_auditentry_kept()
"""


def forwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(POSTGRESQL)


def backwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP TRIGGER IF EXISTS streaming_auditentry_kept ON streaming_auditentry")
        schema_editor.execute("DROP FUNCTION IF EXISTS streaming_auditentry_kept()")


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0023_upstreams_at_once"),
    ]

    operations = [
        migrations.RunPython(forwards, backwards),
    ]
