"""The curl examples are run as they stand, against real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from tests.stack.failing_network import PASSES, failing_network
from tests.stack.servers import ROOT, Stack

SCRIPT = ROOT / "examples" / "curl" / "tour.sh"
LIMIT_S = 240.0

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "gzip"))), reason="the curl examples need bash, curl and gzip"
)


def run(servers: Stack, *parts: str, key: str = "owner", url: str = "") -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "SLUICEGATE_URL": url or servers.url,
        "SLUICEGATE_KEY": servers.keys.get(key, key),
    }
    argv = ["bash", str(SCRIPT), *parts]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def answers(said: str) -> list[Any]:
    """The JSON answers among the lines."""
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def events(said: str) -> Iterator[tuple[int, Any]]:
    """Seq and data of server-sent events."""
    for block in said.split("\n\n"):
        fields = dict(re.findall(r"^(id|data): (.*)$", block, re.MULTILINE))
        if "data" in fields:
            yield int(fields["id"]), json.loads(fields["data"])


def test_it_works(servers: Stack) -> None:
    """Without arguments: all of it."""
    done = run(servers)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stdout.count("\n# ") + 1 == SCRIPT.read_text().count("  echo '# ")


def test_a_check(servers: Stack) -> None:
    (said,) = answers(run(servers, "check").stdout)
    assert (said["action"], said["text"]) == ("redact", "My number is [SSN].")


def test_a_stream(servers: Stack) -> None:
    done = run(servers, "stream")
    assert done.returncode == 0, done.stderr
    started, update, again, status, finish, zipped = answers(done.stdout)
    assert again == update
    assert started["released"] + update["released"] + finish["released"] == "My number is [SSN], and it is mine."
    assert (status["expected_seq"], status["held_chars"]) == (3, update["held_chars"])
    assert (finish["summary"]["calls"], finish["action"]) == (3, "redact")
    assert zipped["released_chars"] + zipped["held_chars"] == len("A long text is worth it.")


async def test_a_stream_survives_connections_that_are_cut(servers: Stack) -> None:
    """Each of its calls comes again: nothing is applied twice, and nothing of it can be seen in what is shown."""
    first, second = ["lost answer", "refused", PASSES], ["cut answer", "lost request", PASSES]
    ways = [*first, *second, PASSES, PASSES, "lost answer", "busy"]
    async with failing_network(*servers.shared.getsockname()) as network:
        url = network.line("tour", Random(1), ways, [])
        done = await asyncio.to_thread(run, servers, "stream", url=url)
    assert done.returncode == 0, done.stderr
    assert network.met.total() == 6
    started, update, again, status, finish, _ = answers(done.stdout)
    assert again == update
    assert started["released"] + update["released"] + finish["released"] == "My number is [SSN], and it is mine."
    assert (status["expected_seq"], finish["summary"]["calls"]) == (3, 3)


async def test_a_check_that_was_cut_is_not_sent_again(servers: Stack) -> None:
    """It would be another one."""
    async with failing_network(*servers.shared.getsockname()) as network:
        url = network.line("tour", Random(1), ["lost answer"], [])
        done = await asyncio.to_thread(run, servers, "check", url=url)
    assert (done.returncode != 0, answers(done.stdout)) == (True, [])


def test_a_chat(servers: Stack) -> None:
    done = run(servers, "chat")
    assert done.returncode == 0, done.stderr
    _, whole, resumed = re.split(r"^# (?:Its|A reader).*$", done.stdout, flags=re.MULTILINE)
    seen, later = list(events(whole)), list(events(resumed))
    assert [data["state"] for _, data in seen if data["type"] == "state"][-1] == "COMPLETE"
    (final,) = [data["final"] for _, data in seen if data["type"] == "done"]
    assert "[SSN]" in final
    assert later[0][0] > 5
    assert [data["final"] for _, data in later if data["type"] == "done"] == [final]


def test_what_is_wrong_is_said(servers: Stack) -> None:
    refused = run(servers, "check", key="sg_wrong")
    assert refused.returncode != 0
    assert answers(refused.stdout)[0]["error"]["code"] == "unauthenticated"
    assert run(servers, "no_such_part").returncode == 2


def test_signed_rules_and_the_keys(servers: Stack) -> None:
    done = run(servers, "rules")
    assert done.returncode == 0, done.stderr
    rules, keys = answers(done.stdout)
    assert (rules["policy"], rules["bundle"].count(".")) == ("demo", 2)
    assert {key["sluicegate_purpose"] for key in keys["keys"]} == {"version", "activation", "audit"}
