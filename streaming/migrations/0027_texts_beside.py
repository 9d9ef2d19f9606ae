"""Checks of texts beside prompt and answer know how much was shown, and no digest outlives a judged text."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("streaming", "0026_checks_of_parts")]

    operations = [
        migrations.AddField(
            model_name="deferredcheck",
            name="shown",
            field=models.PositiveIntegerField(
                blank=True, help_text="Characters of a text beside prompt and answer that were shown.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="deferredcheck",
            name="digest",
            field=models.CharField(
                blank=True,
                default="",
                help_text="Of rows of earlier versions: sha256 of the judged text.",
                max_length=80,
            ),
        ),
    ]
