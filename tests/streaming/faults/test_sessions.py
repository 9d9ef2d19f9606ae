"""Every fault through a whole session: the documented code, what a reader keeps, and an end within the limit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guardrails.policy import compile_policy
from streaming import endless, registry
from streaming.core.text import unusable
from streaming.frames import StartFrame
from streaming.log_redis import close_shared_log
from streaming.providers.base import TimeLimits
from streaming.providers.waits import Waits
from streaming.resilience import TRIES
from tests.streaming.chats import Chatted, chat

from .server import ENDLESS, faulty
from .test_faults import FAULTS, MAKE

pytestmark = pytest.mark.django_db(transaction=True)
DOCS = Path(__file__).parents[3] / "docs"
PATIENT = TimeLimits(connect_s=60.0, token_s=60.0, total_s=90.0)
LIMITS = {
    "stalls": TimeLimits(connect_s=60.0, token_s=2.0, total_s=90.0),
    "silent": TimeLimits(connect_s=60.0, token_s=0.2, total_s=4.0),
}
"""Short where a limit is what ends it; elsewhere a busy machine is no reason to end."""
WITHIN_S = 45.0
"""For each of them on a busy machine. The shortest limit that is not the fault's own is longer."""
GATED = compile_policy(
    {
        "policy": "trial",
        "guardrails": [
            {"name": "heron", "kind": "regex", "action": "block",
             "config": {"rules": [{"id": "h", "pattern": "blue heron"}]}},
        ],
    }
)  # fmt: skip
"""Holds nothing of what the endpoint says: an address might begin with it, and would be withheld (ADR 0103)."""


@dataclass(frozen=True, slots=True)
class Ends:
    """How a session with a fault ends. ``code`` empty: it does not fail. ``tries`` on each path; 0: it had begun.

    ``whole``: tries without streaming, where the answer's deadline leaves time for fewer.
    ``told``: codes on the way that belong to no try. ``reached``: somebody listens there.
    """

    code: str
    final: str = ""
    tries: int = 0
    whole: int = 0
    told: tuple[str, ...] = ()
    reached: bool = True

    @property
    def codes(self) -> list[object]:
        """Every error event in its order: each try, the change of path, the end."""
        if not self.code:
            return [*self.told]
        if not self.tries:
            return [*self.told, self.code]
        tries = [self.code] * (self.tries - 1)
        return [*self.told, *tries, "provider_fallback", *tries[: (self.whole or self.tries) - 1], self.code]

    @property
    def asked(self) -> int:
        """How often the endpoint was asked."""
        return (self.tries + (self.whole or self.tries) or 1) if self.reached else 0


LONGEST = 100_000
"""Characters of an answer here."""
ENVELOPE: dict[str, object] = {"seq": 0, "session_id": "", "ms": 0}
"""What tells two events of the same form apart."""

ENDS = {
    "fine": Ends("", "whole answer"),
    "refuses": Ends("provider_unavailable", tries=TRIES, reached=False),
    "resets": Ends("provider_cut_off", "part"),
    "resets mid-token": Ends("provider_cut_off", "part", told=("malformed_line",)),
    "stalls": Ends("provider_timeout", "part"),
    "silent": Ends("provider_timeout", tries=TRIES, whole=1),
    "no newline": Ends("provider_garbage", tries=1),
    "invalid json": Ends("", "parts", told=("malformed_line",)),
    "only invalid json": Ends("provider_garbage", tries=1, told=("malformed_line",) * 5),
    "429": Ends("provider_rate_limited", tries=TRIES),
    "500": Ends("provider_unavailable", tries=TRIES),
    "500 odd words": Ends("provider_unavailable", tries=TRIES),
    "400 odd words": Ends("provider_refused", tries=1),
    "529": Ends("provider_unavailable", tries=TRIES),
    "truncated gzip": Ends("provider_cut_off", "part"),
    "stacked gzip": Ends("provider_garbage", tries=1),
    "gzip bomb": Ends("provider_garbage", "part"),
    "endless text": Ends("provider_garbage", ENDLESS * (LONGEST // len(ENDLESS))),
    "endless arguments": Ends("provider_garbage", "part"),
    "half a character": Ends("provider_cut_off", "part", told=("malformed_line",)),
    "no end": Ends("provider_cut_off", "part"),
    "not http": Ends("provider_garbage", tries=1),
    "redirects": Ends("provider_refused", tries=1),
    "nothing": Ends("provider_unavailable", tries=TRIES),
}


@pytest.fixture(autouse=True)
async def nothing_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(endless, "MAX_ANSWER_CHARS", LONGEST)
    yield
    await registry.shutdown()
    await close_shared_log()


async def session_with(adapter: str, fault: str) -> tuple[Chatted, int]:
    """A session whose endpoint has the fault, and how often it was asked; over when nobody is connected to it."""
    async with faulty(adapter, fault) as there:
        async with asyncio.timeout(WITHIN_S):
            answered = await chat(MAKE[adapter](there.url, LIMITS.get(fault, PATIENT)), GATED)
            while there.open:  # noqa: ASYNC110 - the server learns of it when the system tells it
                await asyncio.sleep(0.001)
        return answered, there.served


def again() -> dict[str, bool]:
    """Whether asking again may work, by code, as the troubleshooting page says it."""
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| *(yes|no)? *\|", page, re.MULTILINE)
    return {code: word != "no" for code, word in rows}


@pytest.fixture
def waited_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait was to last that its limit ended, by the loop's clock: a busy machine adds nothing to it."""
    ended: list[float] = []
    plain = Waits.waiting

    @asynccontextmanager
    async def waiting(self: Waits) -> AsyncGenerator[None, None]:
        async with plain(self):
            timer = self._timer
            assert timer is not None
            try:
                yield
            finally:
                when = timer.when()
                if timer.expired() and when is not None:
                    ended.append(when - self._since)

    monkeypatch.setattr(Waits, "waiting", waiting)
    return ended


@pytest.mark.parametrize("fault", ENDS)
async def test_it_works(fault: str, waited_s: list[float]) -> None:
    expected = ENDS[fault]
    answers = await asyncio.gather(*(session_with(adapter, fault) for adapter in MAKE))
    for adapter, (answered, served) in zip(MAKE, answers, strict=True):
        errors, said = answered.of("error"), answered.done
        assert answered.codes == expected.codes, adapter
        assert served == expected.asked, adapter
        assert said["final"] == answered.message.content == expected.final, adapter
        assert answered.row.error_code == expected.code, adapter
        assert unusable(answered.row.error) is None, "a database would refuse it, and the ending with it"
        assert said["outcome"] == answered.row.outcome == ("error" if expected.code else "allowed"), adapter
        assert answered.of("state")[-1]["state"] == "COMPLETE", adapter
        *on_the_way, last = [event["recoverable"] for event in errors] or [True]
        assert all(on_the_way), "a try that is repeated says that trying again can help"
        assert last is (again()[expected.code] if expected.code else True), adapter
        if limits := LIMITS.get(fault):
            assert float(str(said["ms"])) >= limits.token_s * 1000, "its own limit ended it, and nothing before that"
    if limits := LIMITS.get(fault):
        latest = limits.token_s if expected.final else limits.total_s  # in one piece there is no limit for tokens
        assert len(waited_s) == len(MAKE) * max(1, expected.asked)
        assert max(waited_s) <= latest + 0.001, "and nothing after that"
    else:
        assert waited_s == []


class Settings:
    SLUICEGATE_FALLBACKS: list[str]


@pytest.mark.parametrize("use_streaming", [None, False], ids=["as_a_stream", "in_one_piece"])
async def test_when_a_provider_is_down_the_next_one_answers_and_the_record_says_who_and_why(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, use_streaming: bool | None
) -> None:
    settings.SLUICEGATE_FALLBACKS = ["ollama"]
    frame = StartFrame(type="start", prompt="hello", provider="openai", model="m-7", use_streaming=use_streaming)
    works = "fine" if use_streaming is None else "only whole"
    async with faulty("openai", "529") as down, faulty("ollama", works) as up, asyncio.timeout(WITHIN_S):
        for name, value in (("OPENAI_BASE_URL", down.url), ("OLLAMA_HOST", up.url), ("OLLAMA_MODEL", "m-8")):
            monkeypatch.setenv(name, value)
        answered = await chat(None, GATED, frame=frame)
        assert (down.served, up.served) == (TRIES, 1)
    assert answered.codes == ["provider_unavailable", "provider_unavailable", "provider_fallback"]
    said, row = answered.message.metadata, answered.row
    assert (answered.done["outcome"], answered.done["final"]) == ("allowed", "whole answer")
    why = "provider_unavailable" if use_streaming is None else "use_streaming_false, provider_unavailable"
    assert (said["provider"], said["streaming"], said["fallback"]) == ("ollama", use_streaming is None, why)
    assert (row.provider, row.streaming, row.fallback) == ("ollama", use_streaming is None, why)
    assert said["notices"] == [["openai", "provider_unavailable", TRIES - 1], ["openai", "provider_fallback", 1]]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9/v1", "file:///etc/hostname", "127.0.0.1:9"])
async def test_an_address_that_is_none_is_refused_on_both_paths_and_asking_again_makes_no_sense(address: str) -> None:
    for adapter in MAKE:
        answered = await chat(MAKE[adapter](address, PATIENT), GATED)
        assert answered.codes == ["provider_fallback", "provider_refused"], adapter
        assert answered.of("error")[-1]["recoverable"] is False
        assert (answered.done["outcome"], answered.done["final"]) == ("error", "")
        assert "is not a" in answered.row.error, adapter


async def test_when_no_stream_comes_the_standard_path_answers_in_the_same_form_and_the_record_says_why() -> None:
    for adapter in MAKE:
        (streamed, _), (whole, asked) = [await session_with(adapter, fault) for fault in ("fine", "only whole")]
        assert asked == TRIES + 1, adapter
        assert whole.codes == ["provider_unavailable", "provider_unavailable", "provider_fallback"], adapter
        assert all(event["recoverable"] for event in whole.of("error"))
        assert whole.shape == streamed.shape, adapter
        assert whole.message.content == streamed.message.content == "whole answer"
        told, stored = whole.done, whole.message.metadata
        assert {**told, **ENVELOPE} == {**streamed.done, **ENVELOPE}, adapter
        assert set(stored) - set(streamed.message.metadata) == {"fallback", "notices"}, adapter
        assert (streamed.row.streaming, streamed.row.fallback) == (True, "")
        assert (whole.row.streaming, whole.row.fallback) == (False, "provider_unavailable"), adapter
        assert (stored["streaming"], stored["fallback"]) == (False, "provider_unavailable"), adapter
        assert stored["notices"] == [[adapter, "provider_unavailable", TRIES - 1], [adapter, "provider_fallback", 1]]


def test_no_fault_is_left_out() -> None:
    assert ENDS.keys() == FAULTS.keys()


@pytest.mark.parametrize("page", ["events.md", "troubleshooting.md"])
def test_every_code_that_a_fault_leads_to_is_documented(page: str) -> None:
    said = set(re.findall(r"`(\w+)`", (DOCS / page).read_text("utf-8")))
    assert {str(code) for ends in ENDS.values() for code in ends.codes} <= said
