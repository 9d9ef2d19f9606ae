"""What people said of findings, and the permission to look at texts."""

from __future__ import annotations

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import streaming.models
import streaming.texts


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0005_guarded_streams"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="auditsession",
            options={
                "ordering": ["-started_at"],
                "permissions": [("reveal_text", "Can look at the texts of a session, which is recorded")],
            },
        ),
        migrations.CreateModel(
            name="Review",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.PositiveIntegerField()),
                (
                    "label",
                    models.CharField(
                        choices=[
                            ("true_positive", "True positive"),
                            ("false_positive", "False positive"),
                            ("unclear", "Unclear"),
                        ],
                        max_length=16,
                    ),
                ),
                ("note", streaming.texts.SealedTextField(blank=True)),
                ("salt", models.CharField(default=streaming.models.new_salt, editable=False, max_length=32)),
                ("by", models.CharField(max_length=150)),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "finding",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="reviews", to="streaming.finding"
                    ),
                ),
            ],
            options={
                "ordering": ["finding", "version"],
                "default_permissions": ("add", "view"),
                "constraints": [
                    models.UniqueConstraint(fields=("finding", "version"), name="review_once_per_version")
                ],
            },
        ),
    ]
