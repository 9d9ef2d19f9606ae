"""Streams that their clients own keep their state beside the audit record."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0004_sealed_texts"),
    ]

    operations = [
        migrations.CreateModel(
            name="GuardedStream",
            fields=[
                (
                    "session",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="guarded",
                        serialize=False,
                        to="streaming.auditsession",
                    ),
                ),
                ("rev", models.PositiveIntegerField(default=0)),
                ("seq", models.PositiveIntegerField(default=0)),
                ("sealed_state", models.BinaryField(null=True)),
            ],
        ),
        migrations.AlterField(
            model_name="auditsession",
            name="origin",
            field=models.CharField(
                choices=[("chat", "Chat"), ("check", "Check"), ("stream", "Stream")], default="chat", max_length=16
            ),
        ),
    ]
