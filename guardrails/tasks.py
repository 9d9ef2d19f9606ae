"""What workers do for versions; thin, the work is in ``services``.

Statements lapse after a day, so a clock has to say them again. Every quarter of an hour and at each start of a worker:
a deployment whose workers were down for a day is well again with the first one that comes up.
"""

from __future__ import annotations

import structlog
from celery import shared_task
from celery.signals import worker_ready

from guardrails import services

logger = structlog.get_logger(__name__)


@shared_task(name="guardrails.tasks.renew_statements", ignore_result=True, expires=600)
def renew_statements() -> None:
    """Renew the activation statements that are due."""
    if done := services.renew_statements():
        logger.info("statements_renewed", count=done)


@worker_ready.connect
def renew_at_start(**_: object) -> None:
    """Nothing was renewed while no worker ran."""
    renew_statements.apply_async(retry=False)
