"""The audit log, append-only: the database itself refuses to alter an entry."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

import streaming.models

REFUSAL = "an entry of the audit log cannot be changed"
SQLITE = f"""
CREATE TRIGGER streaming_auditentry_stays BEFORE UPDATE ON streaming_auditentry
BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
"""
POSTGRESQL = f"""
CREATE FUNCTION streaming_auditentry_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$;
CREATE TRIGGER streaming_auditentry_stays BEFORE UPDATE ON streaming_auditentry
FOR EACH ROW EXECUTE FUNCTION streaming_auditentry_stays()
"""


def forwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    vendor = schema_editor.connection.vendor
    if vendor == "sqlite":
        schema_editor.execute(SQLITE)
    elif vendor == "postgresql":
        schema_editor.execute(POSTGRESQL)


def backwards(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    vendor = schema_editor.connection.vendor
    if vendor == "sqlite":
        schema_editor.execute("DROP TRIGGER IF EXISTS streaming_auditentry_stays")
    elif vendor == "postgresql":
        schema_editor.execute("DROP TRIGGER IF EXISTS streaming_auditentry_stays ON streaming_auditentry")
        schema_editor.execute("DROP FUNCTION IF EXISTS streaming_auditentry_stays()")


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("seq", models.PositiveBigIntegerField(primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("opened", "Opened"),
                            ("sealed", "Sealed"),
                            ("finding", "Finding"),
                            ("review", "Review"),
                            ("reveal", "Reveal"),
                            ("purge", "Purge"),
                        ],
                        max_length=16,
                    ),
                ),
                ("session", models.CharField(blank=True, db_index=True, max_length=36)),
                ("at", models.CharField(max_length=40)),
                ("body", models.JSONField(default=dict)),
                ("before", models.CharField(max_length=64)),
                ("hash", models.CharField(max_length=64)),
            ],
            options={
                "ordering": ["seq"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="AuditHead",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("seq", models.PositiveBigIntegerField(default=0)),
                ("hash", models.CharField(max_length=64)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.AddField(
            model_name="message",
            name="salt",
            field=models.CharField(
                default=streaming.models.new_salt,
                editable=False,
                help_text="Of the text's commitment in the audit log.",
                max_length=32,
            ),
        ),
        migrations.RunPython(forwards, backwards),
    ]
