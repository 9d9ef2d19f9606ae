"""The callbacks of Python programs: each is called with what its signature names, in the order of the events."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

import pytest

from streaming.callbacks import StreamCallbacks, _read, start_stream
from streaming.core.events import ProviderNotice, ThinkingDelta
from streaming.log import MemoryLog
from streaming.providers.base import StreamCutOff
from streaming.sessions import Visitor
from streaming.tools.base import Context
from tests.streaming.pumping import QUICK, Controlled
from tests.streaming.test_agent import Step, Tools, answer, asks, hangs, says_no, stubborn, tools

__all__ = ["tools"]  # the fixture

pytestmark = pytest.mark.django_db(transaction=True)
WAIT_S = 60.0
PROMPT_S = 0.1
SIGNATURES = {
    "on_text": ("text",),
    "on_thinking": ("text",),
    "on_tool_use": ("name", "input"),
    "on_tool_progress": ("name", "input", "message", "progress"),
    "on_tool_result": ("name", "input", "result"),
    "on_tool_error": ("name", "input", "error"),
    "on_error": ("error", "recoverable"),
    "on_state_change": ("old", "new"),
}
"""What a program overrides, and the arguments that it is promised."""

Call = tuple[str, dict[str, object]]


class Heard(StreamCallbacks):
    """Keeps every call with its arguments by their names; half of the methods are coroutines."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        for number, name in enumerate(SIGNATURES):
            keep = self._keeper(name)
            setattr(self, name, self._later(keep) if number % 2 else keep)

    def _keeper(self, name: str) -> Callable[..., None]:
        signature = inspect.signature(getattr(StreamCallbacks, name))

        def keep(*args: object, **named: object) -> None:
            given = signature.bind(self, *args, **named).arguments
            self.calls.append((name, {key: value for key, value in given.items() if key != "self"}))

        return keep

    @staticmethod
    def _later(keep: Callable[..., None]) -> Callable[..., Awaitable[None]]:
        async def later(*args: object, **named: object) -> None:
            await asyncio.sleep(0)
            keep(*args, **named)

        return later


async def halfway(text: str, context: Context) -> object:
    await context.progress(0.5, f"half of {text}")
    return {"counted": text}


async def test_it_works(tools: Tools) -> None:
    """Every one of them, exactly as often as there is something to tell, with exactly the arguments of its name."""
    tools.made.clear()
    tools.add("count", halfway)
    tools.add("shop", says_no)
    first: list[Step] = [ThinkingDelta("Hm. "), "One moment. ", *asks(("count", {"text": "ten"}))]
    second: list[Step] = asks(("shop", {"text": "open?"}))
    third: list[Step] = ["So. ", ProviderNotice("malformed_line", "lost a line"), StreamCutOff("cut off")]
    case = await answer([first, second, third], tools)
    await case.pump.run()
    heard = Heard()
    assert await _read(case.session_id, "order-4711", heard, case.log, QUICK) == "error"
    ten, shop = {"name": "count", "input": {"text": "ten"}}, {"name": "shop", "input": {"text": "open?"}}
    assert heard.calls == [
        ("on_state_change", {"old": "", "new": "ACTIVE"}),
        ("on_thinking", {"text": "Hm. "}),
        ("on_text", {"text": "One moment. "}),
        ("on_tool_use", ten),
        ("on_tool_progress", {**ten, "message": "half of ten", "progress": 0.5}),
        ("on_tool_result", {**ten, "result": '{"counted": "ten"}'}),
        ("on_tool_use", shop),
        ("on_tool_error", {**shop, "error": "the shop is closed"}),
        ("on_text", {"text": "So. "}),
        ("on_error", {"error": "lost a line", "recoverable": True}),
        ("on_error", {"error": "cut off", "recoverable": True}),
        ("on_state_change", {"old": "ACTIVE", "new": "COMPLETE"}),
    ]
    assert {name for name, _ in heard.calls} == SIGNATURES.keys()


def test_the_signatures_are_those_that_programs_were_promised() -> None:
    public = {name: method for name, method in vars(StreamCallbacks).items() if not name.startswith("_")}
    assert {name: tuple(inspect.signature(method).parameters)[1:] for name, method in public.items()} == SIGNATURES


@pytest.mark.usefixtures("demo_policy")
@pytest.mark.parametrize("waiting", ["token", "tool", "stubborn tool"])
async def test_an_interrupt_of_a_program_takes_effect_at_once(
    tools: Tools, waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the call of ``interrupt`` to the outcome; the provider is left by then."""
    tools.add("hangs", hangs)
    tools.add("stubborn tool", stubborn)
    scripts: dict[str, list[Step]] = {
        "token": ["some text", asyncio.Event()],
        "tool": asks(("hangs", {})),
        "stubborn tool": asks(("stubborn tool", {})),
    }
    monkeypatch.setattr("streaming.chat.specs", lambda: tuple(made.spec for made in tools.made.values()))
    took: list[float] = []
    while len(took) < 10 and min(took, default=PROMPT_S) >= PROMPT_S:  # cores are shared: the best of ten counts
        provider, began = Controlled(scripts[waiting]), asyncio.Event()
        monkeypatch.setattr("streaming.chat.get_provider", lambda name, given=provider: given)

        class Waiting(StreamCallbacks):
            def on_text(self, text: str, began: asyncio.Event = began) -> None:
                began.set()

            def on_tool_use(self, name: str, input: object, began: asyncio.Event = began) -> None:
                began.set()

        start = {"prompt": "hello", "tools": True}
        handle = await start_stream(start, Waiting(), visitor=Visitor(client="mine"), log=MemoryLog(), settings=QUICK)
        async with asyncio.timeout(WAIT_S):
            await began.wait()
            started = time.monotonic()
            await handle.interrupt()
            assert await handle.wait() == "interrupted"
        took.append(time.monotonic() - started)
        assert provider.closed
    assert min(took) < PROMPT_S, f"{[round(each * 1000) for each in took]} ms"
