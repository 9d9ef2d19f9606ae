"""What the last round of repair could not repair, where every process can see it.

Exists because a sweep runs in a worker, which has no page of metrics. Protects the rule that nothing stays broken in
silence: one session that cannot be repaired ends no round any more, so it has to be seen by somebody.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import structlog

from streaming.database import AWAY, of_one_statement
from streaming.log import LogUnavailable
from streaming.log_redis import RedisLog

logger = structlog.get_logger(__name__)

PARTS = ("answers", "checks", "streams", "unwritten", "tombstones")
"""Of a round. ``answers``: whose process died; ``checks``: deferred ones and the sessions that wait for them;
``streams``: those that are silent; ``unwritten``: those that the store knows better; ``tombstones``: answers of streams
that are over."""
KEPT_S = 120
"""Seconds that a round's result is believed: sweeps follow each other every ten."""
_KEY = "sg:swept"
_NOTE = "redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) return 1"


class Failures:
    """What a round could not do, by part."""

    def __init__(self) -> None:
        self.number: Counter[str] = Counter()

    @contextmanager
    def alone(self, part: str) -> Iterator[None]:
        """Whatever fails in here is logged and counted, and ends nothing else; but without database or store there is
        no going on, so that they are away is passed on. A lock or a time limit of one row is not that.
        """
        try:
            yield
        except LogUnavailable:
            raise
        except Exception as error:
            if isinstance(error, AWAY) and not of_one_statement(error):
                raise
            self.number[part] += 1
            logger.exception("not_repaired", part=part)


async def note(log: RedisLog, failed: Mapping[str, int]) -> None:
    """Say what a round came to. Raises ``LogUnavailable``."""
    await log.evaluate(_NOTE, [_KEY], [json.dumps({part: failed.get(part, 0) for part in PARTS}), KEPT_S])


async def noted(log: RedisLog) -> dict[str, int]:
    """What the last round came to, nothing where there was none lately. Raises ``LogUnavailable``."""
    said = cast("bytes | None", await log.evaluate("return redis.call('GET', KEYS[1])", [_KEY], []))
    return json.loads(said) if said else {}
