"""The streaming app's settings with their defaults and units, in one typed place.

Exists so that no module reads a setting by a string of its own. Every name is ``SLUICEGATE_`` plus the upper-cased
field, in the settings as in the environment (docs/settings.md); one that is absent has the default below.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver


@dataclass(frozen=True, slots=True)
class Conf:
    """Seconds end in ``_s``; sizes name their unit."""

    max_prompt_chars: int = 32_000
    max_own_text_chars: int = 200_000
    max_frame_bytes: int = 1_048_576
    ack_bytes: int = 65_536
    max_unacked_bytes: int = 1_048_576
    log_ttl_s: int = 3_600
    log_max_events: int = 20_000
    log_poll_s: float = 1.0
    idle_check_s: float = 5.0
    abandon_s: float = 30.0
    write_through_s: float = 2.0
    stale_s: float = 30.0
    monitoring_limit_s: float = 600.0
    stream_expiry_s: float = 300.0
    tombstone_s: float = 300.0
    check_lease_s: float = 60.0
    check_attempts: int = 3
    check_again_s: float = 2.0
    checks_at_once: int = 8
    worker_ttl_s: int = 8
    history_messages: int = 40
    max_messages: int = 200
    max_messages_chars: int = 200_000
    long_task_s: float = 60.0
    tokens_per_s: float = 30.0
    usual_answer_tokens: int = 500
    gateway_at_once: int = 20
    gateway_heartbeat_s: float = 10.0
    sessions_at_once: int = 2_000


_conf = lru_cache(maxsize=1)(Conf)
"""Every session and every socket keeps one."""


_now: Conf | None = None
"""What was read of the settings last; it is asked for several times a token, and there are many of them."""


def conf() -> Conf:
    """The settings as they stand now (tests override them); the same object for as long as they stay the same."""
    global _now
    if _now is None:
        _now = _read()
    return _now


def _read() -> Conf:
    given = {
        f.name: value
        for f in fields(Conf)
        if (value := getattr(settings, f"SLUICEGATE_{f.name.upper()}", None)) is not None
    }
    return _conf(**given)


@receiver(setting_changed)
def _changed(**_: object) -> None:
    global _now
    _now = None


def redis_url() -> str:
    """``REDIS_URL``; empty when there is none."""
    return str(getattr(settings, "REDIS_URL", "") or "")


def demo_mode() -> bool:
    """Whether the page and its socket are open to everybody."""
    return bool(getattr(settings, "SLUICEGATE_DEMO", False))
