"""Do any workers live? A worker says so itself, every few seconds, with a key that expires.

Exists because a dead worker must not look like a slow one: the page says that deferred checks wait, and ``/ready``
names the workers. Protects that promise against the broker's own view, which counts queues and not processes.
"""

from __future__ import annotations

import contextlib
import threading
import uuid

from celery.signals import worker_ready, worker_shutdown
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from streaming.conf import conf, redis_url
from streaming.log import LogUnavailable
from streaming.log_redis import shared_log

PREFIX = "sg:worker:"
_stop = threading.Event()


def _beat() -> None:
    """Until the worker shuts down: renew the key, through a store that goes and comes back."""
    ttl = conf().worker_ttl_s
    key = PREFIX + uuid.uuid4().hex
    client = Redis.from_url(redis_url(), socket_connect_timeout=2, socket_timeout=2, retry=Retry(NoBackoff(), 0))
    try:
        while not _stop.is_set():
            with contextlib.suppress(RedisError, OSError):
                client.set(key, 1, ex=ttl)
            _stop.wait(ttl / 4)
        with contextlib.suppress(RedisError, OSError):
            client.delete(key)
    finally:
        client.close()


@worker_ready.connect
def start_beating(**_: object) -> None:
    """The worker takes tasks from now on; also look at once for what was left behind while none did."""
    _stop.clear()
    threading.Thread(target=_beat, name="worker-heartbeat", daemon=True).start()
    from streaming.tasks import keep_audit_head, sweep  # tasks import this module

    sweep.apply_async(retry=False)
    keep_audit_head.apply_async(retry=False)


@worker_shutdown.connect
def stop_beating(**_: object) -> None:
    """The worker goes; its key goes with it."""
    _stop.set()


async def count_workers() -> int:
    """How many workers said within the last seconds that they live. Raises ``LogUnavailable``."""
    return await shared_log().count(PREFIX + "*") if redis_url() else 0


async def workers_alive() -> bool:
    """Whether any worker lives; False when that cannot be found out."""
    try:
        return await count_workers() > 0
    except LogUnavailable:
        return False
