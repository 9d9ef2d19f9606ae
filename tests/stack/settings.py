"""The project's settings for real servers in tests: the same, but nobody waits half a minute for what is repaired."""

from __future__ import annotations

from project.settings import *  # noqa: F403 - the project's, with a few changes
from project.settings import CELERY_BEAT_SCHEDULE

SLUICEGATE_STALE_S = 3.0
CELERY_BEAT_SCHEDULE = {**CELERY_BEAT_SCHEDULE, "sweep": {"task": "streaming.tasks.sweep", "schedule": 1.0}}
