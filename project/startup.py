"""Stops a process that is misconfigured before it serves anything, and prepares one that is well for serving long."""

from __future__ import annotations

import gc
import sys

from django.core.checks import ERROR, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver

COLLECTED_AFTER = 5_000
"""New objects after which cycles are looked for among them. What a call makes is gone by then without being looked at
(Python's own 700 are made by a part of one)."""

A_TURN_S = 0.0005
"""For so long a thread may keep the others waiting when it does not let go by itself (Python's own 5 ms are ten
steps of an event loop): a visit to the database lets go at every statement, and stood behind the loop each time."""


def refuse_misconfiguration() -> None:
    """Raise ``ImproperlyConfigured`` naming every system check of level ERROR, with its hint."""
    errors = [message for message in run_checks() if message.level >= ERROR and not message.is_silenced()]
    if errors:
        raise ImproperlyConfigured("\n".join(str(message) for message in errors))


def settle() -> None:
    """Threads take short turns; and what is loaded now stays for as long as the process lives: nobody looks for cycles
    in it any more.

    Django, its admin and we are two hundred thousand objects that can be part of one. To look through them and what
    is under way took up to half a second, in which no stream went on, and came the sooner the more was begun.
    """
    _ = get_resolver().url_patterns  # whatever leads to a view is loaded with the first request otherwise
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER)
    sys.setswitchinterval(A_TURN_S)
