"""What ``project.asgi`` makes of the server that it runs under."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.streaming.real_server import clean_environment

ROOT = Path(__file__).parents[2]
UNDER_DAPHNE = """
import asyncio
import gc
import sys
import project.asgi
from daphne.http_protocol import HTTPFactory
from daphne.server import Server
from project.bodies import Request
from tests.project.test_flow import answering, is_held
from twisted.internet.address import IPv4Address

assert gc.get_freeze_count() > 50_000, "what is loaded for good is looked through for cycles"
assert sys.getswitchinterval() < 0.002, "a thread keeps the database's waiting"
assert "streaming.api.root" in sys.modules, "a part is loaded after that"

async def main():
    connections = HTTPFactory(Server(None, endpoints=["tcp:0"]))
    connection = connections.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    assert issubclass(connection.requestFactory, Request), "a body has no bound"
    channel, _, reply = answering(Server.handle_reply)
    channel.pauseProducing()
    work = asyncio.ensure_future(reply(b"one", True))
    assert await is_held(work), "an answer does not wait for who reads it"
    channel.resumeProducing()
    await work

asyncio.run(main())
"""


def test_it_works(tmp_path: Path) -> None:
    """Seen from outside, in a process of its own: what Daphne is given stays with it."""
    env = clean_environment() | {"DJANGO_SETTINGS_MODULE": "project.settings", "SLUICEGATE_DATA_DIR": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", UNDER_DAPHNE]
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
