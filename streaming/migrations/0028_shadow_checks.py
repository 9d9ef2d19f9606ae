"""What workers still have to ask guardrails of shadows, in a table that processes of the version before know nothing of."""

from __future__ import annotations

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

KINDS = [
    ("opened", "Opened"), ("sealed", "Sealed"), ("finding", "Finding"), ("review", "Review"), ("reveal", "Reveal"),
    ("purge", "Purge"), ("shadow", "Shadow"),
]  # fmt: skip


class Migration(migrations.Migration):
    dependencies = [("streaming", "0027_texts_beside")]

    operations = [
        migrations.AlterField(
            model_name="auditentry", name="kind", field=models.CharField(choices=KINDS, max_length=16)
        ),
        migrations.CreateModel(
            name="ShadowCheck",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("policy_digest", models.CharField(help_text="Of the shadow's version.", max_length=80)),
                ("guardrail", models.CharField(max_length=100)),
                ("applies_to", models.CharField(max_length=32)),
                ("part", models.PositiveIntegerField(default=0)),
                (
                    "state",
                    models.CharField(
                        choices=[("waiting", "Waiting"), ("checking", "Checking")], default="waiting", max_length=16
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("queued_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                (
                    "stored_at",
                    models.DateTimeField(default=django.utils.timezone.now, help_text="When the answer ended."),
                ),
                ("sealed", models.BinaryField()),
                (
                    "session",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="shadow_checks",
                        to="streaming.auditsession",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["state", "queued_at"], name="streaming_s_state_b6ef60_idx"),
                    models.Index(fields=["stored_at"], name="streaming_s_stored__1715b9_idx"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("session", "guardrail", "applies_to", "part"), name="shadow_check_once"
                    )
                ],
            },
        ),
    ]
