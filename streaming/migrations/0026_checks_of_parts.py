"""A deferred check says which of several texts it judges, and whether what was said before is with it.

With defaults in the database too: processes of the version before go on queueing checks while versions change.
"""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("streaming", "0025_upstream_time_limits"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="deferredcheck",
            name="check_once_per_guardrail",
        ),
        migrations.AddField(
            model_name="deferredcheck",
            name="conversed",
            field=models.BooleanField(
                db_default=False, default=False, help_text="What was said before is sealed with the text."
            ),
        ),
        migrations.AddField(
            model_name="deferredcheck",
            name="part",
            field=models.PositiveSmallIntegerField(
                db_default=0, default=0, help_text="Which of several texts of that sort: the choice."
            ),
        ),
        migrations.AddConstraint(
            model_name="deferredcheck",
            constraint=models.UniqueConstraint(
                fields=("session", "guardrail", "applies_to", "part"), name="check_once_per_place"
            ),
        ),
    ]
