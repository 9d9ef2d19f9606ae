"""The Celery application; its settings are Django's ``CELERY_*``.

Two things a worker must not do by itself: start misconfigured (Celery runs the system checks but ignores what they
say), and leave its embedded beat behind when it is killed, which would go on sending every periodic task beside the
beat of the next worker.
"""

from __future__ import annotations

import os

from celery import Celery, platforms, signals
from django.core.exceptions import ImproperlyConfigured

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("sluicegate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@signals.worker_init.connect
@signals.beat_init.connect
def stop_if_misconfigured(**_: object) -> None:
    """Leave with the failing checks as message; Celery swallows every exception but this one."""
    from project.startup import refuse_misconfiguration

    try:
        refuse_misconfiguration()
    except ImproperlyConfigured as error:
        raise SystemExit(str(error)) from None


@signals.beat_embedded_init.connect
def die_with_the_worker(**_: object) -> None:
    """Where the system can do it, the beat process inside a worker gets SIGKILL when the worker dies."""
    platforms.set_pdeathsig("SIGKILL")
