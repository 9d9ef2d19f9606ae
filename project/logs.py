"""Logging: one line per event, the correlation id in every line, never a secret or a user's text.

Protects the rule "secrets never reach logs": known secret-bearing keys are blanked, and values that look like bearer
tokens, API keys or passwords in URLs are cut out of messages, whoever wrote them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping

import structlog

from streaming.correlation import correlation_in

_SECRET_KEYS = frozenset(
    {
        "authorization",
        "api_key",
        "x-api-key",
        "token",
        "stream_token",
        "password",
        "secret",
        "cookie",
        "set-cookie",
        "prompt",
        "text",
        "delta",
        "content",
        "chunk",
        "released",
    }
)
_SECRET_VALUES = re.compile(
    r"(?i)(bearer\s+)\S+|([?&]token=)[^&\s]+|(\w+://[^\s:@/]*:)[^\s@/]+(?=@)"
    r"|\b(?!sg_[A-Za-z0-9]{8}(?![A-Za-z0-9_-]))(?:sg|sk|rk)[_-][A-Za-z0-9_-]{8,}"
)
"""What a key of ours begins with (``sg_`` and eight more) is its name, by which lines say whose call it was."""
_BLANK = "[not logged]"


def blank_secrets(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """structlog processor: blank what must not be written."""
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = _BLANK
        elif isinstance(value, str):
            event[key] = _SECRET_VALUES.sub(_without_value, value)
    return event


def _without_value(found: re.Match[str]) -> str:
    """What introduces the secret stays, so that a reader of the log knows what stood there."""
    return next((introduction for introduction in found.groups() if introduction), "") + _BLANK


def name_the_call(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """structlog processor: lines that others write about a call when its own context is gone bear its id all the same.

    Django writes of an answer when the middleware is through, Celery of a task before and after it runs.
    """
    if "correlation_id" in event:
        return event
    request = getattr(event.get("_record"), "request", None)
    found = str(getattr(request, "META", {}).get("sluicegate.correlation_id", ""))
    if not found and str(event.get("logger", "")).startswith("celery."):
        found = correlation_in(str(event["event"]))
    if found:
        event["correlation_id"] = found
    return event


_SHARED: list[structlog.types.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
    blank_secrets,
]


_OURS: list[structlog.types.Processor] = [*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
"""One list, however often it is configured: loggers keep the one that they saw first."""


class WithoutRoutine(logging.Filter):
    """Drops the three lines that Celery writes each time a periodic task goes well."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep everything above INFO, and what is about other tasks."""
        return record.levelno > logging.INFO or "streaming.tasks.sweep" not in record.getMessage()


def logging_config(*, json_lines: bool) -> dict[str, object]:
    """``dictConfig`` for everything that logs; also configures structlog. ``json_lines`` for machines."""
    structlog.configure(
        processors=_OURS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=False)
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
                "foreign_pre_chain": [*_SHARED, name_the_call],
            }
        },
        "filters": {"without_routine": {"()": WithoutRoutine}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["without_routine"]}
        },
        "root": {"handlers": ["console"], "level": "INFO"},
        "loggers": {
            "django.server": {"level": "WARNING"},
            "daphne": {"level": "WARNING"},
            "daphne.http_protocol": {"level": "ERROR"},
            # A traceback a second while Valkey is away, from a loop that comes back by itself; our own lines say it.
            "channels_redis.pubsub": {"level": "CRITICAL"},
            "httpx": {"level": "WARNING"},
            "httpcore": {"level": "WARNING"},
        },
    }
