"""The database itself refuses to alter a version: all that may change is a signature that is not there yet."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

REFUSAL = "a published version cannot be changed"
FROZEN = ("policy_id", "number", "canonical", "digest", "published_at", "published_by_id", "notes")
SIGNED = ("signature", "signed_at", "signed_by_id")


def _changed(distinct: str) -> str:
    frozen = " OR ".join(f"NEW.{name} {distinct} OLD.{name}" for name in FROZEN)
    signed = " OR ".join(f"NEW.{name} {distinct} OLD.{name}" for name in SIGNED)
    return f"{frozen} OR (OLD.signature <> '' AND ({signed}))"


SQLITE = f"""
CREATE TRIGGER guardrails_version_stays BEFORE UPDATE ON guardrails_policyversion
WHEN {_changed("IS NOT")}
BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
"""
POSTGRESQL = f"""
CREATE FUNCTION guardrails_version_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF {_changed("IS DISTINCT FROM")} THEN RAISE EXCEPTION '{REFUSAL}'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER guardrails_version_stays BEFORE UPDATE ON guardrails_policyversion
FOR EACH ROW EXECUTE FUNCTION guardrails_version_stays()
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
        schema_editor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays")
    elif vendor == "postgresql":
        schema_editor.execute("DROP TRIGGER IF EXISTS guardrails_version_stays ON guardrails_policyversion")
        schema_editor.execute("DROP FUNCTION IF EXISTS guardrails_version_stays()")


class Migration(migrations.Migration):
    dependencies = [("guardrails", "0001_initial")]
    operations = [migrations.RunPython(forwards, backwards)]
