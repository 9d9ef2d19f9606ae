"""Time limits and failures on the way, which all adapters over HTTP share. Hours pass on a clock of our own."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from django.core.checks import run_checks

from streaming import breakers
from streaming.core.events import ProviderChosen, ProviderEvent, TextDelta
from streaming.providers.anthropic import AnthropicProvider
from streaming.providers.base import (
    ChatMessage,
    Provider,
    ProviderError,
    ProviderRateLimited,
    ProviderRefused,
    ProviderRequest,
    ProviderTimeout,
    StreamCutOff,
    TimeLimits,
    UnknownProvider,
    available,
    get_provider,
)
from streaming.providers.failures import refusal, url_problem
from streaming.providers.ollama import OllamaProvider
from streaming.providers.openai import OpenAIProvider
from streaming.providers.waits import Waits
from streaming.resilience import Upstreams
from streaming.system_checks import check_fallbacks, check_providers
from tests.streaming.faults.server import SAYS
from tests.streaming.local_server import HEAD, serve

ASK = ProviderRequest((ChatMessage("user", "hello"),))
A = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
MAKE: dict[str, Callable[[str], Provider]] = {
    "anthropic": AnthropicProvider,
    "openai": OpenAIProvider,
    "ollama": OllamaProvider,
}
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock can be set forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run(test: Callable[[Loop], Awaitable[None]]) -> None:
    """Run ``test`` on a loop of its own, which it is handed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        await asyncio.wait_for(test(loop), 3_600)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


async def text_and_error(provider: Provider, *, streaming: bool = True) -> tuple[str, ProviderError | None]:
    text = ""
    try:
        async with aclosing(provider.stream(ASK) if streaming else provider.standard(ASK)) as events:
            async for event in events:
                text += event.text if isinstance(event, TextDelta) else ""
    except ProviderError as error:
        return text, error
    return text, None


async def test_it_works() -> None:
    async with serve([A, A, END]) as endpoint:
        assert await text_and_error(OpenAIProvider(endpoint.base_url)) == ("aa", None)


@pytest.mark.parametrize("pieces", [[], [HEAD], [HEAD, b": keep-alive\n\n"]], ids=["nothing", "head", "comment"])
def test_silence_before_the_first_token_ends_although_not_a_byte_comes(pieces: list[bytes]) -> None:
    async def test(loop: Loop) -> None:
        async with serve(pieces, head=b"", hang=True) as endpoint:
            answer = asyncio.create_task(text_and_error(OpenAIProvider(endpoint.base_url)))
            await endpoint.asked.wait()
            loop.ahead += 179
            for _ in range(20):
                await asyncio.sleep(0)
            assert not answer.done()
            loop.ahead += 1.5
            text, error = await answer
            assert isinstance(error, ProviderTimeout)
            assert (text, str(error)) == ("", "the provider sent no token for 180 s")
            await endpoint.client_gone.wait()

    run(test)


def test_an_answer_has_one_deadline_over_tries_fallbacks_and_both_paths() -> None:
    limits = TimeLimits(connect_s=86_400, token_s=180, total_s=900)

    async def test(loop: Loop) -> None:
        async with serve([], head=b"", hang=True) as endpoint:
            asked = [
                kind(endpoint.base_url, limits=limits) for kind in (OpenAIProvider, OllamaProvider, AnthropicProvider)
            ]
            began, said = loop.time(), list[ProviderEvent]()

            async def answer() -> None:
                async with aclosing(Upstreams(tuple(asked)).ask(ASK)) as events:
                    async for event in events:
                        said.append(event)  # what came before the error counts

            answering = asyncio.create_task(answer())
            while not answering.done():
                loop.ahead += 1
                for _ in range(5):
                    await asyncio.sleep(0)
            with pytest.raises(ProviderTimeout, match="not complete within 900 s"):
                await answering
            assert 900 <= loop.time() - began < 960
            # 180 s each: no third provider, and nobody without streaming.
            assert [event.provider for event in said if isinstance(event, ProviderChosen)] == ["openai", "ollama"]
            assert len(endpoint.requests) == 5

    breakers.forget()
    run(test)


@pytest.mark.parametrize("adapter", MAKE)
def test_a_stall_after_a_token_ends_when_the_limit_for_silence_has_passed_and_the_text_stands(adapter: str) -> None:
    async def test(loop: Loop) -> None:
        async with serve([SAYS[adapter]("part")], hang=True) as endpoint:
            text, said = "", asyncio.Event()

            async def listen() -> None:
                nonlocal text
                async with aclosing(MAKE[adapter](endpoint.base_url).stream(ASK)) as events:
                    async for event in events:
                        text += event.text if isinstance(event, TextDelta) else ""
                        said.set()

            loop.ahead += 100  # what passed before does not count
            listening = asyncio.create_task(listen())
            await said.wait()
            loop.ahead += 179
            for _ in range(20):
                await asyncio.sleep(0)
            assert not listening.done()
            loop.ahead += 2
            with pytest.raises(ProviderTimeout, match="the provider sent no token for 180 s"):
                await listening
            assert text == "part"
            await endpoint.client_gone.wait()

    run(test)


@pytest.mark.parametrize("adapter", MAKE)
def test_a_connection_that_does_not_come_about_is_given_up_after_thirty_seconds(adapter: str) -> None:
    """The other side accepts and then says nothing, so that the handshake never ends."""

    async def test(loop: Loop) -> None:
        met = asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)  # the client has begun its handshake
            met.set()
            await reader.read()
            writer.close()

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answer = asyncio.create_task(text_and_error(MAKE[adapter](f"https://127.0.0.1:{port}")))
            await met.wait()
            loop.ahead += 28
            for _ in range(20):
                await asyncio.sleep(0)
            assert not answer.done()
            loop.ahead += 3
            text, error = await answer
        assert isinstance(error, ProviderTimeout)
        assert (text, str(error)) == ("", f"no connection to the provider at 127.0.0.1:{port} within 30 s")

    run(test)


def test_a_reader_that_takes_its_time_is_not_taken_for_a_silent_provider() -> None:
    async def test(loop: Loop) -> None:
        limits = TimeLimits(token_s=180, total_s=100_000)
        async with (
            serve([A, A, A, END]) as endpoint,
            aclosing(OpenAIProvider(endpoint.base_url, limits=limits).stream(ASK)) as events,
        ):
            text = ""
            async for event in events:
                loop.ahead += 1_000
                text += event.text if isinstance(event, TextDelta) else ""
            assert text == "aaa"

    run(test)


def test_the_whole_answers_limit_passes_also_while_tokens_lie_ready() -> None:
    async def test(loop: Loop) -> None:
        async with serve([A], hang=True) as endpoint:
            events = OpenAIProvider(endpoint.base_url).stream(ASK)
            assert await anext(events) == TextDelta("a")
            loop.ahead += 901
            with pytest.raises(ProviderTimeout, match="not complete within 900 s"):
                await anext(events)
            await endpoint.client_gone.wait()

    run(test)


def test_an_answer_that_is_not_streamed_may_be_silent_until_it_is_whole() -> None:
    async def test(loop: Loop) -> None:
        async with serve([], head=b"", hang=True) as endpoint:
            answer = asyncio.create_task(text_and_error(OpenAIProvider(endpoint.base_url), streaming=False))
            await endpoint.asked.wait()
            loop.ahead += 600
            for _ in range(20):
                await asyncio.sleep(0)
            assert not answer.done()
            loop.ahead += 301
            _, error = await answer
            assert str(error) == "the answer was not complete within 900 s"

    run(test)


@pytest.mark.parametrize("pieces", [[], [HEAD, A]], ids=["before the first byte", "between tokens"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_that_nobody_wants_any_more_closes_its_connection_at_once(
    pieces: list[bytes], streaming: bool
) -> None:
    async with serve(pieces, head=b"", hang=True) as endpoint:
        answer = asyncio.create_task(text_and_error(OpenAIProvider(endpoint.base_url), streaming=streaming))
        await endpoint.asked.wait()
        started = time.monotonic()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        await endpoint.client_gone.wait()
        assert time.monotonic() - started < 0.1


async def test_a_handshake_that_is_never_answered_is_no_connection() -> None:
    async with serve([], head=b"", hang=True) as endpoint:
        url = endpoint.base_url.replace("http:", "https:")
        _, error = await text_and_error(OpenAIProvider(url, limits=TimeLimits(connect_s=0.05)))
        gc.collect()  # a socket that was forgotten would warn here, and warnings are errors
    assert isinstance(error, ProviderTimeout)
    assert str(error).startswith("no connection to the provider at 127.0.0.1:")
    assert str(error).endswith(" within 0.05 s")


def test_each_limit_has_a_clock_of_its_own() -> None:
    async def test(loop: Loop) -> None:
        waits = Waits(TimeLimits(connect_s=30, token_s=10, total_s=100), "box")

        async def passes(seconds: float) -> None:
            async with waits.waiting():
                loop.ahead += seconds
                for _ in range(3):
                    await asyncio.sleep(0)

        await passes(29)  # connecting is not silence
        waits.connected()
        await passes(6)
        loop.ahead += 50  # our reader's time
        await passes(3)
        with pytest.raises(ProviderTimeout, match="no token for 10 s"):
            await passes(2)
        waits.heard()
        await passes(8)
        waits.heard()
        with pytest.raises(ProviderTimeout, match="within 100 s"):
            await passes(5)
        waits = Waits(TimeLimits(), "box")
        with pytest.raises(ProviderTimeout, match="no connection to the provider at box within 30 s"):
            await passes(31)

    run(test)


async def test_a_connection_that_breaks_is_a_stream_cut_off_and_the_text_stands() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"%x\r\n%s\r\n" % (len(A), A))
        writer.write(b"ff\r\ndata: {")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        text, error = await text_and_error(OpenAIProvider(f"http://127.0.0.1:{port}"))
    assert text == "a"
    assert isinstance(error, StreamCutOff)


async def test_a_redirect_is_not_followed_because_the_key_would_go_with_it() -> None:
    async with serve([]) as other:
        head = f"HTTP/1.1 307 X\r\nLocation: {other.base_url}\r\nContent-Length: 0\r\n\r\n".encode()
        async with serve([], head=head) as endpoint:
            _, error = await text_and_error(OpenAIProvider(endpoint.base_url, "sk-key"))
        assert other.requests == []
    assert isinstance(error, ProviderRefused)
    assert "redirect" in str(error)


def test_retry_after_is_seconds_or_a_date() -> None:
    def wait(value: str) -> float | None:
        error = refusal(429, httpx.Headers({"Retry-After": value}), b"")
        assert isinstance(error, ProviderRateLimited)
        return error.retry_after_s

    assert wait("7") == 7
    assert wait("-7") == 0
    assert wait("soon") is None
    assert wait("inf") is None
    assert wait("nan") is None
    in_a_minute = wait(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://box", "file:///etc/passwd", "http://", "http://:80", "http://box:99999", "http://box:x",
     "http://box\n.example", "http://[::1", "http://box?x=1", "http://box/#x", "javascript:alert(1)"],
)  # fmt: skip
async def test_a_base_url_that_cannot_be_used_is_refused_at_once_and_not_repeated(url: str) -> None:
    _, error = await text_and_error(OpenAIProvider(url))
    assert isinstance(error, ProviderRefused)
    assert "base URL" in str(error)
    assert not url or url not in str(error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://box.example/v1", "HTTP://box", "http://[::1]:9/x"])
def test_usable_base_urls_have_no_problem(url: str) -> None:
    assert url_problem(url) == ""


def test_ill_formed_settings_hurt_only_their_provider_and_are_a_system_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("SLUICEGATE_OPENAI_TOKEN_S", "soon")
    monkeypatch.setenv("OLLAMA_HOST", "ftp://user:secret@box")
    assert {"scripted", "ollama"} <= available().keys()
    assert "openai" not in available()
    with pytest.raises(UnknownProvider, match="SLUICEGATE_OPENAI_TOKEN_S is a number of seconds"):
        get_provider("openai")
    messages = check_providers(None)
    assert [message.id for message in messages] == ["sluicegate.E020", "sluicegate.E021"]
    assert "SLUICEGATE_OPENAI_TOKEN_S" in messages[0].msg
    assert "'ollama'" in messages[1].msg
    assert all(message.hint for message in messages)
    assert "secret" not in str(messages)
    monkeypatch.delenv("SLUICEGATE_OPENAI_TOKEN_S")
    monkeypatch.delenv("OLLAMA_HOST")
    assert check_providers(None) == []


class Fallbacks:
    SLUICEGATE_FALLBACKS: list[str]


@pytest.mark.parametrize(
    ("named", "expected"),
    [([], []), (["anthropic", "scripted"], []), (["ollama"], []), (["olama"], ["E022"]), (["anthropic", ""], ["E022"]),
     (["openai"], []), (["ollama", "anthropic", "ollama"], ["E023"]), (["nobody", "nobody"], ["E022", "E023"])],
    ids=lambda value: "-".join(value) or "none",
)  # fmt: skip
def test_fallbacks_are_offered_and_named_once(
    named: list[str], expected: list[str], settings: Fallbacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODEL", "m")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_MODEL", "m")
    monkeypatch.setenv("SLUICEGATE_OPENAI_TOKEN_S", "soon")  # set up, and wrongly: that is E020
    settings.SLUICEGATE_FALLBACKS = named
    messages = run_checks()
    found = [message for message in messages if message.id in {"sluicegate.E022", "sluicegate.E023"}]
    assert [message.id for message in found] == [f"sluicegate.{one}" for one in expected]
    assert all(message.hint for message in found)
    for message in found:
        assert any(repr(name) in message.msg for name in named)


def test_a_provider_that_stands_alone_is_not_its_own_fallback(
    settings: Fallbacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODEL", "m")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings.SLUICEGATE_FALLBACKS = ["ollama"]
    assert [message.id for message in check_fallbacks(None)] == ["sluicegate.E023"]
    settings.SLUICEGATE_FALLBACKS = ["scripted"]
    assert check_fallbacks(None) == []


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "nan", "inf", "1 s"])
def test_a_limit_that_is_no_length_of_time_is_not_taken(value: str) -> None:
    with pytest.raises(ValueError, match="SLUICEGATE_OPENAI_CONNECT_S"):
        TimeLimits.from_environment({"SLUICEGATE_OPENAI_CONNECT_S": value}, "openai")
