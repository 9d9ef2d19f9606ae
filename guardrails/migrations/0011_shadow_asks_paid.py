"""Whether a shadow's guardrails that go over the network are asked; the database says yes for processes before this one."""

from __future__ import annotations

from django.db import migrations, models

WORDS = "The shadow's guardrails that go over the network are asked, too."


class Migration(migrations.Migration):
    dependencies = [("guardrails", "0010_answers_at_once")]

    operations = [
        migrations.AddField(
            model_name="policy",
            name="shadow_asks_paid",
            field=models.BooleanField(db_default=True, default=True, editable=False, help_text=WORDS),
        ),
        migrations.AddField(
            model_name="shadowchange",
            name="asks_paid",
            field=models.BooleanField(db_default=True, default=True, help_text=WORDS),
        ),
    ]
