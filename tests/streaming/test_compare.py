"""The three ways on one clock: what each lane shows, when, and that nothing but made-up text is shown unguarded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.db import OperationalError
from django.test import Client

from guardrails import selectors as policies
from guardrails.policy import Policy, compile_policy
from streaming import registry
from streaming.compare import OFFERED, Figures, Piece, Race, Teed, cut, hits, offered
from streaming.compare_socket import after
from streaming.core.events import ProviderEvent, TextDelta
from streaming.log_redis import close_shared_log, shared_log
from streaming.models import AuditSession
from streaming.providers.base import Provider, ProviderRequest
from streaming.providers.scripted import SCENARIOS, ScriptedProvider
from streaming.routing import websocket_urlpatterns

SSN = "219-09-9999"


def policy(action: str = "redact") -> Policy:
    rule = {"id": "ssn", "pattern": r"\d{3}-\d{2}-\d{4}", "placeholder": "[SSN]"}
    guardrail = {"name": "numbers", "kind": "regex", "action": action, "config": {"rules": [rule]}}
    return compile_policy({"policy": "t", "guardrails": [guardrail]})


class Clock:
    """Advances by a second each time that it is looked at, from 0."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


async def race(texts: list[str], rules: Policy) -> tuple[list[tuple[str, int]], object]:
    run, shown = Race(rules, Clock()), []
    for text in texts:
        run.tell(text)
    run.tell(None)

    async def show(text: str, waiting: int) -> None:
        shown.append((text, waiting))

    return shown, await run.run(show)


async def test_it_works() -> None:
    shown, result = await race(["it is 219", "-09-9999", ", right"], policy())
    assert shown == [("it is 219", 9), ("-09-9999", 17), (", right", 24)]
    assert list(result.pieces) == [Piece("it is "), Piece(SSN, "numbers"), Piece(", right")]
    assert result.checked.visible == "it is [SSN], right"
    assert result.raw == Figures(1000, 4000, values=1, characters=11, leaked_ms=1000)
    assert result.buffered == Figures(5000, 5000)


async def test_what_leaked_first_is_told_by_its_own_first_character() -> None:
    _, result = await race(["a long way ", "to ", "2", "19-09-9999"], policy())
    assert result.raw.leaked_ms == 3000


async def test_a_clean_answer_leaks_nothing_and_the_buffer_still_waits_for_the_end() -> None:
    _, result = await race(["all", " is", " well"], policy())
    assert result.raw == Figures(1000, 4000)
    assert result.buffered.first_ms == 5000


async def test_what_a_policy_only_warns_of_is_no_leak() -> None:
    _, result = await race([SSN], policy(action="warn"))
    assert len(result.checked.findings) == 1
    assert result.raw.values == 0
    assert list(result.pieces) == [Piece(SSN)]


async def test_an_answer_that_is_blocked_at_once_shows_nothing_in_the_buffer() -> None:
    _, result = await race([SSN, " and more"], policy(action="block"))
    assert result.checked.blocked is not None
    assert result.buffered.first_ms is None
    assert result.buffered.done_ms is not None
    assert result.raw.characters == 11


async def test_overlapping_findings_make_one_piece_each_and_no_character_twice() -> None:
    _, result = await race([f"{SSN}{SSN} x {SSN}"], policy())
    assert "".join(piece.text for piece in result.pieces) == f"{SSN}{SSN} x {SSN}"
    found = hits(result.checked.findings)
    assert "".join(piece.text for piece in cut("abcdef", [*found])) == "abcdef"


class Real(Provider):
    """A provider with users behind it."""

    scripted = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> None: ...

    @property
    def default_model(self) -> str:
        return "real-1"

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield TextDelta(SSN)


def test_a_real_providers_answer_is_never_shown_unguarded() -> None:
    with pytest.raises(ValueError, match="only a scripted provider"):
        Teed(Real(), print)


async def cut_off(*, stopped: bool) -> list[str | None]:
    """What is read along when the gate closes the stream after its first text."""
    told: list[str | None] = []
    over = asyncio.Event()

    def tell(text: str | None) -> None:
        told.append(text)
        if text is None:
            over.set()

    teed = Teed(ScriptedProvider(rate=10_000), tell)
    stream = teed.stream(ProviderRequest((), scenario="clean"))
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    if stopped:
        teed.stop()
    await stream.aclose()
    async with asyncio.timeout(30):
        await over.wait()
    return told


async def test_a_gate_that_blocks_does_not_end_what_is_read_along() -> None:
    assert "".join(text or "" for text in await cut_off(stopped=False)) == SCENARIOS["clean"].answer


async def test_who_stops_ends_all_of_it() -> None:
    assert len("".join(text or "" for text in await cut_off(stopped=True))) < len(SCENARIOS["clean"].answer)


def test_only_texts_are_compared() -> None:
    assert offered("pii")
    assert offered("own_text")
    assert not offered("injection")
    assert not offered("")


def test_the_gated_lane_counts_what_got_out_and_nothing_else() -> None:
    seen = after(Figures(), {"type": "message_stream", "channel": "thinking"}, 1)
    assert seen == Figures()
    seen = after(seen, {"type": "message_stream", "channel": "text"}, 20)
    seen = after(seen, {"type": "message_stream", "channel": "text"}, 30)
    hidden = {"type": "finding", "action": "redact", "would_have": None, "exposed": 0}
    seen = after(seen, hidden, 40)
    seen = after(seen, {**hidden, "action": "warn", "exposed": 5}, 45)
    assert after(seen, {"type": "done"}, 50) == Figures(20, 50)
    assert after(seen, {**hidden, "exposed": 3}, 60) == Figures(20, None, 1, 3, 60)


# --- the socket and the page ------------------------------------------------------------------------------------------


@pytest.fixture
async def quick(
    demo_policy: object, valkey_url: str, settings: object, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    yield
    await registry.shutdown()
    await close_shared_log()


async def opened() -> WebsocketCommunicator:
    socket = WebsocketCommunicator(URLRouter(websocket_urlpatterns), "/ws/compare/")
    socket.scope["session"] = type("Session", (), {"session_key": "s1"})()
    accepted, _ = await socket.connect(timeout=10)
    assert accepted
    return socket


async def compared(socket: WebsocketCommunicator, **frame: object) -> list[str]:
    """Everything that is sent until all three lanes are done."""
    await socket.send_to(text_data=json.dumps({"type": "start", "provider": "scripted", **frame}))
    sent: list[str] = []
    done: set[str] = set()
    while done != {"raw", "buffered", "gated"}:
        sent.append(await socket.receive_from(timeout=30))
        lane = re.match(r'\s*<dl id="(\w+)-figures"', sent[-1])
        if lane and "–" not in sent[-1]:
            done.add(lane[1])
    return sent


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_the_gated_lane_is_a_session_with_a_record_and_never_has_the_values() -> None:
    socket = await opened()
    sent = await compared(socket, scenario="pii")
    raw = "".join(re.findall(r'beforeend:#raw-text">([^<]*)<', "".join(sent)))
    assert raw == SCENARIOS["pii"].answer
    gated = [text for text in sent if 'id="cursor"' in text]
    assert not [text for text in gated if "536-22" in text or "4111 1111" in text]
    over = next(text for text in sent if 'id="raw-text" class="text"' in text and "leak" in text)
    assert "536-22-8145</mark>" in over
    assert "[</span>" in over.split('id="buffered-text"')[1]
    assert "536-22" not in over.split('id="buffered-text"')[1]
    session = await AuditSession.objects.aget()
    assert session.provider == "scripted"
    assert session.outcome == "redacted"
    await socket.disconnect()


async def cut_off_and_resumed(monkeypatch: pytest.MonkeyPatch) -> tuple[WebsocketCommunicator, AuditSession]:
    """A comparison that runs for long, and another socket that reads it on."""
    text = "all is well. " * 1_000
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "20")
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "scenario": "own_text", "text": text}))
    while "beforeend:#raw-text" not in await socket.receive_from(timeout=10):
        pass
    await socket.disconnect()
    first = await AuditSession.objects.aget()
    assert first.state == first.State.ACTIVE
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "resume", "session_id": str(first.pk), "last_seq": 0}))
    while 'id="cursor"' not in await socket.receive_from(timeout=10):
        pass
    return socket, first


async def until(socket: WebsocketCommunicator, wanted: str) -> str:
    """All that is sent from here on, up to a fragment that has this in it."""
    sent = [await socket.receive_from(timeout=10)]
    while wanted not in sent[-1]:
        sent.append(await socket.receive_from(timeout=10))
    return "".join(sent)


CLEARED = '<div id="conversation" hx-swap-oob="true"></div>'
REFUSED = [
    ({"scenario": ""}, "unknown_scenario"),
    ({"scenario": "injection"}, "unknown_scenario"),
    ({"scenario": "pii", "conversation_id": "x"}, "not_a_conversation"),
    ({"scenario": "own_text", "text": " "}, "empty_text"),
    ({"scenario": "pii", "policy": "nobodys"}, "policy_unavailable"),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("frame", "code"), REFUSED)
async def test_what_cannot_be_compared_is_refused_and_nothing_begins(frame: dict[str, object], code: str) -> None:
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "provider": "anthropic", **frame}))
    assert f'data-error="{code}"' in await until(socket, "data-error")
    assert await AuditSession.objects.acount() == 0
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_what_is_refused_neither_ends_a_comparison_that_runs_nor_clears_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does one that could not be stored."""

    async def away(*_: object) -> None:
        raise OperationalError("gone")

    socket, first = await cut_off_and_resumed(monkeypatch)
    for frame, code in [*REFUSED, ({"scenario": "clean"}, "database_unavailable")]:
        if code == "database_unavailable":
            monkeypatch.setattr("streaming.consumers.start_chat", away)
        await socket.send_to(text_data=json.dumps({"type": "start", "provider": "scripted", **frame}))
        sent = await until(socket, "data-error")
        assert f'data-error="{code}"' in sent
        sent += await until(socket, 'id="cursor"')  # it is read on
        assert CLEARED not in sent
    await first.arefresh_from_db()
    assert first.state == first.State.ACTIVE
    assert not await shared_log().interrupted(str(first.pk))
    assert await AuditSession.objects.acount() == 1
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_what_is_refused_leaves_the_other_lanes_of_a_blocked_answer_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "40")
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "scenario": "blocked_phrase"}))
    sent = await until(socket, 'data-outcome="blocked"')
    assert sent.count('id="raw-figures"') == 1, "the empty ones"
    await socket.send_to(text_data=json.dumps({"type": "start", "scenario": "own_text", "text": " "}))
    sent += await until(socket, 'id="raw-figures"')
    assert 'data-error="empty_text"' in sent
    assert "".join(re.findall(r'beforeend:#raw-text">([^<]*)<', sent)) == SCENARIOS["blocked_phrase"].answer
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_a_second_comparison_begins_on_an_empty_page_and_markup_stays_text() -> None:
    socket = await opened()
    await compared(socket, scenario="clean")
    sent = "".join(await compared(socket, scenario="own_text", text="<b onclick=x>bold</b> 219-09-9999 &amp;"))
    assert CLEARED in sent
    assert "<b onclick" not in sent
    assert "&lt;b onclick=x&gt;" in sent
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_a_blocked_answer_goes_on_where_nobody_guards_it() -> None:
    socket = await opened()
    sent = "".join(await compared(socket, scenario="blocked_phrase"))
    assert "".join(re.findall(r'beforeend:#raw-text">([^<]*)<', sent)) == SCENARIOS["blocked_phrase"].answer
    assert sent.count("The answer was stopped by the guardrail") == 2  # buffered and gated say the same
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_stop_stops_all_three() -> None:
    text = "all is well. " * 15_000  # longer than a busy machine takes to hear of the interrupt
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "scenario": "own_text", "text": text}))
    sent = ""
    while "beforeend:#raw-text" not in sent:
        sent += await socket.receive_from(timeout=10)
    await socket.send_to(text_data=json.dumps({"type": "interrupt"}))
    while 'id="raw-figures"' not in sent or 'data-outcome="interrupted"' not in sent:
        sent += await socket.receive_from(timeout=20)
    raw = "".join(re.findall(r'beforeend:#raw-text">([^<]*)<', sent))
    assert 0 < len(raw) < len(text)
    await socket.disconnect()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_who_comes_back_to_one_that_was_cut_off_can_begin_another_which_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was told for ever that an answer was being written."""
    socket, first = await cut_off_and_resumed(monkeypatch)
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "2000")
    sent = "".join(await compared(socket, scenario="clean"))
    assert "data-error" not in sent
    while first.state == first.State.ACTIVE:
        await asyncio.sleep(0.05)
        await first.arefresh_from_db()
    assert first.outcome == "interrupted"
    await socket.disconnect()


async def test_stopped_before_the_provider_is_asked_the_other_two_lanes_end_as_well() -> None:
    """Nothing was said to them and nothing will be: they waited for it for ever.

    The gate's answer is whole: a visitor whose connection was cut off just then comes back to it.
    """
    told: list[str | None] = []
    teed = Teed(ScriptedProvider(rate=10_000), told.append)
    teed.stop()
    assert told == [None]
    request = ProviderRequest((), scenario="clean")
    said = [event.text async for event in teed.stream(request) if isinstance(event, TextDelta)]
    assert "".join(said) == SCENARIOS["clean"].answer
    assert told == [None]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_a_reader_who_goes_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "scenario": "slow"}))
    while "raw-text" not in await socket.receive_from(timeout=10):
        pass
    await socket.disconnect()
    await registry.shutdown()
    await close_shared_log()
    assert not [task for task in asyncio.all_tasks() - before if "_lanes" in repr(task)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("quick")
async def test_lanes_that_fail_say_so_and_wait_for_nothing_and_the_gated_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("streaming.compare.check_text", broken)
    socket = await opened()
    await socket.send_to(text_data=json.dumps({"type": "start", "provider": "scripted", "scenario": "pii"}))
    sent = [await socket.receive_from(timeout=30)]
    while not any('id="raw-figures"' in text and "cut off" in text for text in sent):
        sent.append(await socket.receive_from(timeout=30))
    assert sent[-1].count("cut off") == 6
    assert "data-under-way" not in sent[-1]
    assert re.search(r'id="buffered-wait"[^>]* hidden></p>', sent[-1])
    while not any('id="gated-figures"' in text and "nothing that is hidden" in text for text in sent):
        sent.append(await socket.receive_from(timeout=30))
    assert any('data-error="internal"' in text for text in sent)
    assert "out of luck" not in "".join(sent)
    await socket.disconnect()


@pytest.mark.django_db
@pytest.mark.usefixtures("demo_policy")
def test_the_pages_are_there_and_name_each_other(client: Client, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    page = client.get("/compare/").content.decode()
    assert all(f'data-scenario="{name}"' in page for name in OFFERED)
    welcome = client.get("/welcome/").content.decode()
    for link in ('href="/"', 'href="/compare/"', 'href="/admin/"', 'href="/audit/"', 'href="/v1/docs"'):
        assert link in welcome
    assert 'href="/compare/"' in client.get("/").content.decode()


@pytest.mark.django_db
def test_outside_the_demo_the_page_needs_a_login_and_the_welcome_none(client: Client, settings: object) -> None:
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    assert client.get("/compare/").status_code == 302
    assert client.get("/welcome/").status_code == 200


@pytest.mark.django_db
def test_without_a_policy_each_page_says_so_and_what_to_do(client: Client, settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    welcome, live, three = (client.get(address).content.decode() for address in ("/welcome/", "/", "/compare/"))
    assert "None is active: publish, sign and activate one in the administration." in welcome
    assert "No policy is active." in live
    assert ">no policy</span>" in live
    assert live.count("No guardrail of this policy runs here.") == 3
    assert 'id="no-policy"' in three
    assert '<span id="policy-used">none</span>' in three


@pytest.mark.django_db
@pytest.mark.usefixtures("demo_policy")
def test_with_a_policy_that_cannot_be_used_each_page_says_so(
    client: Client, settings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    real = policies.policy_choices
    monkeypatch.setattr(policies, "policy_choices", lambda: [replace(info, healthy=False) for info in real()])
    welcome, live, three = (client.get(address).content.decode() for address in ("/welcome/", "/", "/compare/"))
    assert re.search(r"demo v1\s+✕ unusable", welcome)
    assert "✕</span> v1 unusable" in live
    assert 'id="no-policy"' not in three
