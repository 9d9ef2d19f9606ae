"""Rolling back while fifty streams are open on two web processes: they finish on their version, new ones begin on the
older one, in whichever process, and no call fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import httpx
import pytest

from tests.stack.clients import Json
from tests.stack.processes import LIMIT_S
from tests.stack.servers import Stack, stack

STREAMS = 50
AT_ONCE = 6
"""Calls under way at any moment: more only queue on a small machine."""
MEANWHILE = 10
"""Streams at most that are begun while the roll-back runs."""
PIECES = ["The heron buys from ac", "me, and the he", "ron pays. So says acme."]
UNDER = {
    1: "The heron buys from [1], and the heron pays. So says [1].",
    2: "The [2] buys from [1], and the [2] pays. So says [1].",
}
"""What each version lets through."""


@dataclass
class Stream:
    """One stream; its calls go to the two processes in turn."""

    http: httpx.Client
    ats: tuple[str, str]
    session_id: str = ""
    version: int = 0
    shown: str = ""
    calls: int = 0
    done: Json = field(default_factory=dict)

    def start(self) -> Stream:
        """Begin it with the first piece."""
        said = self._call("start", {"policy": "turns", "delta": PIECES[0]})
        self.session_id = str(said["session_id"])
        policy = said["policy"]
        assert isinstance(policy, dict)
        self.version = int(policy["version"])
        return self

    def update(self) -> Stream:
        """One piece more."""
        self._call("update", {"session_id": self.session_id, "seq": self.calls + 1, "delta": PIECES[self.calls]})
        return self

    def finish(self) -> Stream:
        """All that is left, and the end."""
        while self.calls < len(PIECES) - 1:
            self.update()
        last = {"session_id": self.session_id, "seq": self.calls + 1, "delta": PIECES[self.calls]}
        self.done = self._call("finish", last)
        return self

    def _call(self, name: str, body: Json) -> Json:
        response = self.http.post(f"{self.ats[self.calls % 2]}/v1/stream/{name}", json=body)
        assert response.is_success, response.text
        said: Json = response.json()
        self.calls += 1
        self.shown += str(said["released"])
        return said


def version(servers: Stack, *words: str) -> None:
    """Put the next version of the policy ``turns`` to work: word n becomes ``[n]``."""
    guardrails = [
        {"name": f"word-{n}", "kind": "regex", "action": "redact",
         "config": {"rules": [{"id": "word", "pattern": word, "placeholder": f"[{n}]", "must_match": [word]}]}}
        for n, word in enumerate(words, start=1)
    ]  # fmt: skip
    file = servers.folder / "turns.json"
    file.write_text(json.dumps({"policy": "turns", "guardrails": guardrails}))
    done = servers.manage("rules", "import", str(file), "--publish", "--sign", "--activate")
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two web processes, two workers, one Valkey."""
    with stack(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running


@pytest.fixture
def ats(servers: Stack) -> tuple[str, str]:
    a, b = (web.url for web in servers.webs)
    return a, b


def test_it_works(servers: Stack, ats: tuple[str, str]) -> None:
    """The roll-back happens while streams of before go on and others begin, all of them through both processes."""
    version(servers, "acme")
    version(servers, "acme", "heron")
    ways = [ats, ats[::-1]]
    with (
        httpx.Client(headers={"Authorization": f"Bearer {servers.keys['owner']}"}, timeout=LIMIT_S) as http,
        ThreadPoolExecutor(AT_ONCE) as pool,
        ThreadPoolExecutor(1) as operator,
    ):
        before = list(pool.map(lambda n: Stream(http, ways[n % 2]).start(), range(STREAMS)))
        assert [stream.version for stream in before] == [2] * STREAMS
        rolled = operator.submit(servers.manage, "rules", "rollback", "turns", "1", "--note", "it hides too much")
        # Whoever is here while it happens: half of those that are open go on, and new ones begin.
        going_on = [pool.submit(stream.update) for stream in before[::2]]
        meanwhile: list[Stream] = []
        while not rolled.done() and len(meanwhile) < MEANWHILE:
            meanwhile += pool.map(lambda n: Stream(http, ways[n % 2]).start(), range(2))
        assert rolled.result().returncode == 0, rolled.result().stderr
        for future in going_on:
            future.result()
        after = list(pool.map(lambda n: Stream(http, ways[n % 2]).start(), range(8)))
        list(pool.map(Stream.finish, chain(before, meanwhile, after)))
    assert [stream.version for stream in after] == [1] * len(after)
    assert {stream.version for stream in meanwhile} <= {1, 2}
    for stream in (*before, *meanwhile, *after):
        assert (stream.shown, stream.done["action"]) == (UNDER[stream.version], "redact")
    assert [stream.version for stream in before] == [2] * STREAMS
    rows = servers.rows("SELECT version_id, serial, note FROM guardrails_activation WHERE cohort = '' ORDER BY id DESC")
    assert rows[0][1:] == (3, "it hides too much")
    failed = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE outcome = 'error'")
    assert failed == [(0,)]
