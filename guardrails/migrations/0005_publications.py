"""Client rules and the report of a publication. The database refuses to alter them as it refuses to alter versions."""

from __future__ import annotations

import django.db.models.deletion
from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

REFUSAL = "what a publication made cannot be changed"
FROZEN = ("version_id", "client_rules", "client_digest")


def _changed(distinct: str, text: str) -> str:
    """``report`` is JSON, which PostgreSQL has no plain equality of bytes for: it is compared as text."""
    frozen = " OR ".join(f"NEW.{name} {distinct} OLD.{name}" for name in FROZEN)
    report = f"{text.format('NEW')} {distinct} {text.format('OLD')}"
    signed = f"(OLD.client_signature <> '' AND NEW.client_signature {distinct} OLD.client_signature)"
    return f"{frozen} OR {report} OR {signed}"


SQLITE = f"""
CREATE TRIGGER guardrails_publication_stays BEFORE UPDATE ON guardrails_publication
WHEN {_changed("IS NOT", "{}.report")}
BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
"""
POSTGRESQL = f"""
CREATE FUNCTION guardrails_publication_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {_changed("IS DISTINCT FROM", "{}.report::text")} THEN RAISE EXCEPTION '{REFUSAL}'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER guardrails_publication_stays BEFORE UPDATE ON guardrails_publication
FOR EACH ROW EXECUTE FUNCTION guardrails_publication_stays()
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
        schema_editor.execute("DROP TRIGGER IF EXISTS guardrails_publication_stays")
    elif vendor == "postgresql":
        schema_editor.execute("DROP TRIGGER IF EXISTS guardrails_publication_stays ON guardrails_publication")
        schema_editor.execute("DROP FUNCTION IF EXISTS guardrails_publication_stays()")


class Migration(migrations.Migration):
    dependencies = [("guardrails", "0004_statements")]
    operations = [
        migrations.CreateModel(
            name="Publication",
            fields=[
                (
                    "version",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="publication",
                        serialize=False,
                        to="guardrails.policyversion",
                    ),
                ),
                ("client_rules", models.TextField()),
                (
                    "client_digest",
                    models.CharField(help_text="sha256:… over the bytes of the client rules.", max_length=80),
                ),
                (
                    "client_signature",
                    models.TextField(blank=True, help_text="Compact JWS over the client rules."),
                ),
                (
                    "report",
                    models.JSONField(help_text="Compilation, bounds, examples, parity vectors, budget."),
                ),
            ],
            options={"default_permissions": ["view"]},
        ),
        migrations.RunPython(forwards, backwards),
    ]
