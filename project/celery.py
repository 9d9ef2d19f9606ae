"""The Celery application; its settings are Django's ``CELERY_*``.

What a worker must not do by itself: start misconfigured (Celery runs the system checks but ignores what they say),
configure logging its own way, and leave its embedded beat behind when it is killed, which would go on sending every
periodic task beside the beat of the next worker.
"""

from __future__ import annotations

import os
import warnings

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


@signals.setup_logging.connect
def log_as_settings_say(**_: object) -> None:
    """That somebody listens to this signal is what keeps Celery from adding handlers of its own."""


@signals.worker_ready.connect
def accept_that_checks_outlive_a_lost_broker(**_: object) -> None:
    """Celery warns, at each lost connection, that it goes on with the tasks it has. That is wanted: a check stores its
    result under its lease, and when the task is delivered again there is nothing left to do."""
    warnings.filterwarnings("ignore", message=r"\s*In Celery 5\.1 we introduced")


@signals.beat_embedded_init.connect
def die_with_the_worker(**_: object) -> None:
    """Where the system can do it, the beat process inside a worker gets SIGKILL when the worker dies."""
    platforms.set_pdeathsig("SIGKILL")  # type: ignore[attr-defined]  # missing in the stubs
