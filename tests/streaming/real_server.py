"""A real web server in a process of its own, with a database of its own and an upstream that the test plays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from project.demo import child, services
from tests.prepared import fill

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 90.0
OURS = ("SLUICEGATE_", "DATABASE_", "DEBUG", "ALLOWED_HOSTS", "OPENAI_", "ANTHROPIC_", "OLLAMA_")

APP = "project.asgi:application"
_PREPARE = """
import importlib, json, sys
import django
django.setup()
importlib.import_module(sys.argv[2].partition(":")[0])
from guardrails import services
from guardrails.bootstrap import prepare_database
from streaming.rollout import ensure_flag
prepare_database()
ensure_flag(everyone=True)
for document in json.loads(sys.argv[3]):
    services.install(document=document)
made = [services.create_api_key(name=f"client {n}", scopes=["stream"])[1] for n in range(int(sys.argv[1]))]
print(json.dumps(made))
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: the address of its JSON socket, an API key for each client, its log so far."""

    url: str
    keys: tuple[str, ...]
    said: Path


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures a server of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


@contextmanager
def served(
    data_dir: Path,
    upstream: socket.socket,
    *,
    clients: int,
    redis_url: str,
    app: str = APP,
    policies: Sequence[Mapping[str, object]] = (),
) -> Iterator[Served]:
    """Prepare, start, wait until it answers, stop. ``upstream``: where the endpoint of all adapters listens.

    ``app``: the ASGI application. ``policies``: documents that are at work there beside the starters; their web hooks
    may be on this machine.
    """
    env = clean_environment()
    address = f"http://127.0.0.1:{upstream.getsockname()[1]}"
    env |= {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "SLUICEGATE_DATA_DIR": str(data_dir),
        "REDIS_URL": redis_url,
        "OPENAI_BASE_URL": f"{address}/v1",
        "ANTHROPIC_BASE_URL": address,
        "OLLAMA_HOST": address,
        "OPENAI_MODEL": "m-1",
        "SLUICEGATE_HOOK_HOSTS": "127.0.0.1",
    }
    fill(data_dir)
    prepared = subprocess.run(
        [sys.executable, "-c", _PREPARE, str(clients), app, json.dumps(policies)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=START_LIMIT_S, check=False,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    with running(data_dir, env, app) as (port, said):
        yield Served(f"ws://127.0.0.1:{port}/ws/stream/", tuple(json.loads(prepared.stdout)), said)


@contextmanager
def running(data_dir: Path, env: Mapping[str, str], app: str = APP) -> Iterator[tuple[int, Path]]:
    """Start a web server, wait until it answers, stop it: its port and its log."""
    port = _free_port()
    tether = Path(child.__file__).with_name("tether.py")
    argv = [sys.executable, "-I", "-S", str(tether), str(os.getpid()), *services.web({}, port).argv[:-1], app]
    said = data_dir / "server.log"
    with said.open("wb") as log:
        server = subprocess.Popen(argv, cwd=ROOT, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until_up(port, server, said)
        yield port, said
    finally:
        server.terminate()
        try:
            server.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_up(port: int, server: subprocess.Popen[bytes], said: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server is not up ({error}):\n{said.read_text()[-4000:]}") from error
            time.sleep(0.05)
