"""The project's settings for a run in which workers are killed: nobody waits a minute for what the dead held."""

from __future__ import annotations

from tests.stack.settings import *  # noqa: F403 - the same, with a few changes

SLUICEGATE_STALE_S = 10.0
SLUICEGATE_CHECK_LEASE_S = 6.0
SLUICEGATE_MONITORING_LIMIT_S = 3_600.0
"""A thousand checks on a busy machine wait for longer than ten minutes; that what nobody makes expires is shown
elsewhere, and here it would hide what was lost."""
