"""The project's settings for a run in which workers are killed: nobody waits a minute for what the dead held."""

from __future__ import annotations

from tests.stack.settings import *  # noqa: F403 - the same, with a few changes

SLUICEGATE_STALE_S = 10.0
SLUICEGATE_CHECK_LEASE_S = 6.0
