"""Streaming is rolled out by flag, stage and percentage, and switched off at once."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import pytest
import stamina
from channels.db import database_sync_to_async
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, InterfaceError

from streaming import breakers, registry, rollout
from streaming.chat import Asked, Own, start_chat
from streaming.conf import Conf
from streaming.core.events import ProviderChosen, ProviderEvent, Stopped, TextDelta, ToolCallDelta
from streaming.flags import RolloutFlag, Stage, place
from streaming.frames import StartFrame
from streaming.log import MemoryLog
from streaming.models import AuditSession, Message
from streaming.providers.base import ChatMessage, ProviderRequest, ProviderUnavailable, ToolSpec
from streaming.resilience import TRIES, Calls, Upstreams
from streaming.rollout import Decision, Marks, RolledOut, Subject, decide, estimate_s, supports_streaming
from streaming.sessions import Visitor
from tests.streaming.pumping import QUICK, Controlled, grown, policy_of

pytestmark = pytest.mark.django_db(transaction=True)
PLAIN = ProviderRequest((ChatMessage("user", "hello"),))
TOOLS = ProviderRequest((ChatMessage("user", "hello"),), tools=(ToolSpec("clock", "the time", {"type": "object"}),))
LONG = ProviderRequest((ChatMessage("user", "Translate this: " + "word " * 2_000),))


def flag(**fields: object) -> RolloutFlag:
    defaults: dict[str, object] = {"superusers": False}
    return RolloutFlag.objects.create(name=rollout.FLAG, **(defaults | fields))


def subject(**fields: object) -> Subject:
    return Subject(**({"conversation_id": str(uuid.uuid4())} | fields))  # type: ignore[arg-type]


def test_it_works() -> None:
    flag(everyone=True)
    assert decide(subject(), PLAIN) == Decision(True)


# -- on, off, and who ----------------------------------------------------------------------------------------------


def test_without_a_flag_only_the_demo_streams(settings: object) -> None:
    settings.SLUICEGATE_DEMO = False  # type: ignore[attr-defined]
    assert decide(subject(), PLAIN) == Decision(False, "flag_off")
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    assert decide(subject(), PLAIN) == Decision(True)


def test_a_flag_that_is_off_is_off_in_the_demo_too(settings: object) -> None:
    settings.SLUICEGATE_DEMO = True  # type: ignore[attr-defined]
    flag(everyone=False)
    assert decide(subject(), PLAIN) == Decision(False, "flag_off")


def test_a_flag_with_nothing_set_is_off() -> None:
    flag()
    assert decide(subject(), PLAIN) == Decision(False, "flag_off")


@pytest.mark.parametrize(("word", "told"), [(False, Decision(False, "use_streaming_false")), (True, Decision(True))])
def test_the_callers_no_wins_over_a_flag_that_is_on(word: bool, told: Decision) -> None:
    flag(everyone=True)
    assert decide(subject(use_streaming=word), PLAIN) == told


def test_the_callers_yes_does_not_win_over_a_flag_that_is_off() -> None:
    flag(everyone=False)
    assert decide(subject(use_streaming=True), PLAIN) == Decision(False, "flag_off")


def test_a_caller_outside_the_rollout_streams_without_a_flag() -> None:
    assert decide(subject(flagged=False), PLAIN) == Decision(True)
    assert decide(subject(flagged=False, use_streaming=False), PLAIN) == Decision(False, "use_streaming_false")


def test_people_are_chosen_as_waffle_chooses_them() -> None:
    made = flag()
    chosen, member, staff, root, other = (
        User.objects.create_user("chosen"),
        User.objects.create_user("member"),
        User.objects.create_user("staff", is_staff=True),
        User.objects.create_superuser("root"),
        User.objects.create_user("other"),
    )
    group = Group.objects.create(name="early")
    member.groups.add(group)
    made.users.add(chosen)
    made.groups.add(group)

    def streaming() -> set[str]:
        people = (chosen, member, staff, root, other)
        inside = {p.username for p in people if decide(subject(user_id=p.pk), PLAIN).streaming}
        return inside | ({"nobody"} if decide(subject(), PLAIN).streaming else set())

    assert streaming() == {"chosen", "member"}
    assert decide(subject(user_id=other.pk), PLAIN).fallback == "not_in_rollout"
    for name, more in (
        ("staff", {"staff", "root"}),
        ("superusers", {"root"}),
        ("authenticated", {"staff", "root", "other"}),
    ):
        RolloutFlag.objects.update(**{"staff": False, "superusers": False, "authenticated": False, name: True})
        assert streaming() == {"chosen", "member"} | more
    assert decide(subject(user_id=10_000), PLAIN).fallback == "not_in_rollout"  # deleted meanwhile


@pytest.mark.parametrize(
    "marks",
    [
        Marks(query="dwft_streaming=1"),
        Marks(headers=(("dwft-streaming", "1"),)),
        Marks(headers=(("cookie", "a=b; dwft_streaming=True"),)),
    ],
)
def test_a_tester_is_let_in_by_query_header_or_cookie_only_while_the_flag_is_tested(marks: Marks) -> None:
    made = flag(testing=True)
    assert decide(subject(marks=marks), PLAIN) == Decision(True)
    assert decide(subject(), PLAIN) == Decision(False, "not_in_rollout")
    made.testing = False
    made.save()
    assert not decide(subject(marks=marks), PLAIN).streaming


@pytest.mark.parametrize("cookie", ["", ";;=", 'a="', "\x01=\x02", "dwft_streaming", "=" * 5_000])
def test_a_broken_cookie_is_no_tester_and_no_error(cookie: str) -> None:
    flag(testing=True)
    assert not decide(subject(marks=Marks(headers=(("cookie", cookie),))), PLAIN).streaming


# -- percentage ----------------------------------------------------------------------------------------------------


def test_a_quarter_of_10_000_conversations_streams_and_stays_where_it_is() -> None:
    made = flag(percent=25)
    conversations = [str(uuid.UUID(int=n * 7_919 + 11)) for n in range(10_000)]
    chosen = {c for c in conversations if made.is_active(rollout._as_waffle_sees_it(Subject(c)), read_only=True)}
    assert 2_300 <= len(chosen) <= 2_700
    assert chosen == {c for c in conversations if place(rollout.FLAG, c) < 25}  # whoever asks, whenever
    for conversation in conversations[:40]:
        expected = Decision(True) if conversation in chosen else Decision(False, "not_in_rollout")
        assert [decide(Subject(conversation), PLAIN) for _ in range(3)] == [expected] * 3


def test_a_larger_percentage_keeps_those_who_stream_already() -> None:
    conversations = [str(uuid.UUID(int=n)) for n in range(1, 2_000)]
    quarter = {c for c in conversations if place("streaming", c) < 25}
    half = {c for c in conversations if place("streaming", c) < 50}
    assert quarter < half


def test_two_flags_do_not_pick_the_same_conversations() -> None:
    conversations = [str(uuid.UUID(int=n)) for n in range(1, 4_000)]
    one = {c for c in conversations if place("streaming", c) < 25}
    two = {c for c in conversations if place("another", c) < 25}
    assert 0.15 < len(one & two) / len(one) < 0.35


def test_a_request_without_a_conversation_is_in_no_percentage() -> None:
    flag(percent="99.9")
    assert decide(Subject(""), PLAIN) == Decision(False, "not_in_rollout")


# -- request types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "plain", "long", "tools"),
    [(Stage.TOOLS, False, False, True), (Stage.LONG, False, True, True), (Stage.ALL, True, True, True)],
)
def test_tools_come_first_then_long_tasks_then_all(stage: Stage, plain: bool, long: bool, tools: bool) -> None:
    flag(everyone=True, stage=stage)
    assert [supports_streaming(request, stage, Conf()) for request in (PLAIN, LONG, TOOLS)] == [plain, long, tools]
    for request, on in ((PLAIN, plain), (LONG, long), (TOOLS, tools)):
        assert decide(subject(), request) == (Decision(True) if on else Decision(False, "request_type"))


def test_long_is_what_would_take_more_than_a_minute() -> None:
    settings = Conf(tokens_per_s=10, usual_answer_tokens=100)
    assert estimate_s(ProviderRequest(()), settings) == 10
    assert estimate_s(ProviderRequest((ChatMessage("user", "x" * 4_000),)), settings) == 110
    assert estimate_s(ProviderRequest((ChatMessage("user", "x" * 4_000),), max_tokens=50), settings) == 5
    assert estimate_s(ProviderRequest((ChatMessage("user", "x" * 4_000),), max_tokens=50, choices=3), settings) == 15
    exactly = ProviderRequest((ChatMessage("user", "x" * 2_000),))
    assert not supports_streaming(exactly, Stage.LONG, settings)
    assert supports_streaming(exactly, Stage.LONG, Conf(tokens_per_s=9.9, usual_answer_tokens=100))


# -- through a session ---------------------------------------------------------------------------------------------


@dataclass
class Both(Controlled):
    """Says on which path it was asked."""

    paths: list[str] = field(default_factory=list)

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.paths.append("stream")
        async for event in super().stream(request):
            yield event

    async def standard(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.paths.append("standard")
        yield TextDelta("".join(step for step in self.script if isinstance(step, str)))
        yield Stopped("stop")


@pytest.fixture(autouse=True)
async def no_pump_left() -> AsyncIterator[None]:
    yield
    await registry.shutdown()


@dataclass
class Answered:
    events: list[dict[str, object]]
    paths: list[str]
    row: AuditSession
    message: Message


async def ask(
    use_streaming: bool | None = None,
    conversation_id: str = "",
    visitor: Visitor | None = None,
    provider: Both | None = None,
) -> Answered:
    provider, log = provider or Both(script=["The number is ", "536-22-", "8145."]), MemoryLog()

    async def queue(_: str) -> None:
        pass

    own = Own(provider=provider, policy=policy_of(without="harm"), queue_checks=queue)
    frame = StartFrame(
        type="start", prompt="hello", use_streaming=use_streaming, conversation_id=conversation_id, tools=True
    )
    started = await start_chat(frame, Asked(visitor or Visitor(session_key="s"), "", own=own), log, QUICK)

    async def over() -> bool:
        return any(e["type"] == "state" and e.get("outcome") for e in await log.read(started.session_id, 0))

    await grown(log, started.session_id, over, 20)
    events = await log.read(started.session_id, 0, 1_000)
    row = await AuditSession.objects.aget(pk=started.session_id)
    return Answered(events, provider.paths, row, await Message.objects.aget(pk=started.answer_id))


async def set_flag(**fields: object) -> None:
    await RolloutFlag.objects.all().adelete()
    await database_sync_to_async(flag)(**fields)


async def test_the_standard_path_answers_in_the_same_form_and_the_record_says_why() -> None:
    await set_flag(everyone=True)
    streamed = await ask()
    await set_flag(everyone=False)
    whole = await ask()
    assert (streamed.paths, whole.paths) == (["stream"], ["standard"])

    def shape(answered: Answered) -> list[tuple[str, frozenset[str]]]:
        """Types and fields in order; runs of chunks count as one."""
        out: list[tuple[str, frozenset[str]]] = []
        for event in answered.events:
            one = (str(event["type"]), frozenset(event))
            if event["type"] != "hold" and (not out or out[-1] != one):
                out.append(one)
        return out

    assert shape(streamed) == shape(whole)
    assert streamed.message.content == whole.message.content == "The number is [SSN]."
    extra = set(whole.message.metadata) ^ set(streamed.message.metadata)
    assert extra == {"fallback"}
    assert (streamed.message.metadata["streaming"], streamed.row.streaming, streamed.row.fallback) == (True, True, "")
    assert (whole.message.metadata["streaming"], whole.message.metadata["fallback"]) == (False, "flag_off")
    assert (whole.row.streaming, whole.row.fallback) == (False, "flag_off")


async def test_the_callers_no_is_recorded_as_such() -> None:
    await set_flag(everyone=True)
    answered = await ask(use_streaming=False)
    assert answered.paths == ["standard"]
    assert (answered.row.streaming, answered.row.fallback) == (False, "use_streaming_false")


async def test_a_session_streams_for_the_users_and_the_groups_of_the_flag_and_for_nobody_else() -> None:
    """The whole way, from a start to the record; and who leaves the group no longer streams."""

    def people() -> tuple[User, User, User, Group]:
        RolloutFlag.objects.all().delete()
        made, group = flag(), Group.objects.create(name="early")
        chosen, member, other = (User.objects.create_user(name) for name in ("chosen", "member", "other"))
        member.groups.add(group)
        made.users.add(chosen)
        made.groups.add(group)
        return chosen, member, other, group

    chosen, member, other, group = await database_sync_to_async(people)()

    async def paths(user: User | None) -> tuple[list[str], bool, str]:
        visitor = Visitor(session_key="s") if user is None else Visitor(user_id=user.pk)
        answered = await ask(visitor=visitor)
        assert answered.message.content == "The number is [SSN]."
        return answered.paths, answered.row.streaming, answered.row.fallback

    streamed, whole = (["stream"], True, ""), (["standard"], False, "not_in_rollout")
    assert [await paths(user) for user in (chosen, member, other, None)] == [streamed, streamed, whole, whole]
    await database_sync_to_async(member.groups.remove)(group)
    assert [await paths(user) for user in (chosen, member)] == [streamed, whole]


async def test_the_first_and_the_later_requests_of_a_conversation_are_decided_alike() -> None:
    await set_flag(percent=50)
    visitor = Visitor(session_key="s")
    for _ in range(6):
        first = await ask(visitor=visitor)
        again = await ask(visitor=visitor, conversation_id=str(first.row.conversation_id))
        assert first.row.streaming == again.row.streaming == (place("streaming", str(first.row.conversation_id)) < 50)


async def test_switched_off_mid_traffic_by_another_process_the_next_request_does_not_stream() -> None:
    await set_flag(everyone=True)
    seen = []
    for n in range(20):
        if n == 10:  # a bare UPDATE clears no cache of this process: what another process's admin does
            await RolloutFlag.objects.aupdate(everyone=False)
        seen.append((await ask()).paths)
    assert seen == [["stream"]] * 10 + [["standard"]] * 10


@dataclass
class Halfway(Both):
    """Says half of its answer, and the rest when it may."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.paths.append("stream")
        yield TextDelta("Half of it, ")
        self.begun.set()
        await self.go.wait()
        yield TextDelta("and the rest.")
        yield Stopped("stop")


async def test_switched_off_while_answers_stream_they_end_as_streams_and_the_next_of_their_conversations_does_not() -> (
    None
):
    await set_flag(everyone=True)
    visitor, providers = Visitor(session_key="s"), [Halfway(script=["All of it."]) for _ in range(5)]
    answers = [asyncio.create_task(ask(visitor=visitor, provider=provider)) for provider in providers]
    async with asyncio.timeout(60):
        for provider in providers:
            await provider.begun.wait()
        await RolloutFlag.objects.aupdate(everyone=False)
        for provider in providers:
            provider.go.set()
        for answered, provider in zip(await asyncio.gather(*answers), providers, strict=True):
            assert answered.paths == ["stream"]
            assert answered.message.content == "Half of it, and the rest."
            assert (answered.row.outcome, answered.row.streaming, answered.row.fallback) == ("allowed", True, "")
            assert "fallback" not in answered.message.metadata
            mine = str(answered.row.conversation_id)
            follows = await ask(visitor=visitor, provider=provider, conversation_id=mine)
            assert follows.paths == ["stream", "standard"]
            assert follows.message.content == "All of it."
            assert (follows.row.streaming, follows.row.fallback) == (False, "flag_off")
            assert (follows.message.metadata["streaming"], follows.message.metadata["fallback"]) == (False, "flag_off")


async def chosen_by(upstreams: RolledOut) -> ProviderEvent:
    """The first event of an answer that is read to its end."""
    events = [event async for event in upstreams.ask(PLAIN)]
    return events[0]


async def test_switched_off_the_next_request_of_a_running_answer_does_not_stream() -> None:
    await set_flag(everyone=True)
    provider = Both(script=["one"])
    upstreams = RolledOut(Upstreams((provider,)), Decision(True), subject(), Conf())
    assert await chosen_by(upstreams) == ProviderChosen("", True)
    await RolloutFlag.objects.aupdate(everyone=False)
    assert await chosen_by(upstreams) == ProviderChosen("", False, "flag_off")
    await RolloutFlag.objects.aupdate(everyone=True)  # an answer that fell to the standard path stays there
    assert await chosen_by(upstreams) == ProviderChosen("", False, "flag_off")
    assert provider.paths == ["stream", "standard", "standard"]


@dataclass
class SwitchedOff(Both):
    """Calls a tool; while it does, an admin switches streaming off."""

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.paths.append("stream")
        yield TextDelta("Let me see. ")
        await RolloutFlag.objects.aupdate(everyone=False)
        yield ToolCallDelta(0, "call_1", "calculator", '{"expression": "6 * 7"}')
        yield Stopped("tool_calls")


async def test_switched_off_while_a_tool_is_called_its_result_goes_back_on_the_standard_path() -> None:
    await set_flag(everyone=True)
    answered = await ask(provider=SwitchedOff(script=["It is 42."]))
    assert answered.paths == ["stream", "standard"]
    assert answered.message.content == "Let me see. It is 42."
    assert (answered.row.streaming, answered.row.fallback) == (False, "flag_off")


@dataclass(eq=False)
class Fails(Both):
    """Is away; while it is waited for, an admin switches streaming off."""

    after: int = 1

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        self.paths.append("stream")
        if self.paths.count("stream") == self.after:
            await RolloutFlag.objects.aupdate(everyone=False)
        raise ProviderUnavailable("it is down")
        yield TextDelta("never")


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_switched_off_before_another_try_or_another_provider_the_next_request_does_not_stream(after: int) -> None:
    await set_flag(everyone=True)
    stamina.set_testing(True, attempts=TRIES, cap=True)
    breakers.forget()
    provider, other = Fails(script=["It is 42."], after=after), Both(script=["Not asked."])
    other.name = "other"  # type: ignore[misc]
    upstreams = RolledOut(Upstreams((provider, other)), Decision(True), subject(), Conf())
    try:
        events = [event async for event in upstreams.ask(PLAIN)]
    finally:
        stamina.set_testing(False)
    chosen = [event for event in events if isinstance(event, ProviderChosen)]
    assert chosen == [ProviderChosen("", True), ProviderChosen("", False, "provider_unavailable, flag_off")]
    assert TextDelta("It is 42.") in events
    assert (provider.paths, other.paths) == (["stream"] * after + ["standard"], [])


@pytest.mark.parametrize("kind", [DatabaseError, InterfaceError])
async def test_a_flag_that_cannot_be_read_breaks_no_running_answer(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: object) -> Decision:
        raise kind("away")

    provider = Both(script=["one"])
    upstreams = RolledOut(Upstreams((provider,)), Decision(True), subject(), Conf())
    monkeypatch.setattr(rollout, "decide", gone)
    for _ in range(2):
        assert await chosen_by(upstreams) == ProviderChosen("", True)


async def test_reasons_of_flag_and_provider_both_stand_in_the_record() -> None:
    class Fallen(Upstreams):
        async def ask(
            self, request: ProviderRequest, handed: Calls | None = None
        ) -> AsyncGenerator[ProviderEvent, None]:
            yield ProviderChosen("second", self.streaming, "provider_unavailable")

    upstreams = RolledOut(Fallen((Both(),)), Decision(False, "request_type"), subject(), Conf())
    (event,) = [e async for e in upstreams.ask(PLAIN)]
    assert event == ProviderChosen("second", False, "request_type, provider_unavailable")


def test_reading_the_flag_costs_a_request_next_to_nothing() -> None:
    flag(percent=25)
    started = time.perf_counter()
    for _ in range(100):
        decide(subject(), PLAIN)
    assert (time.perf_counter() - started) / 100 < 0.02


def test_the_demo_makes_the_flag_once_and_leaves_an_admins_choice_alone() -> None:
    rollout.ensure_flag(everyone=True)
    RolloutFlag.objects.update(everyone=False)
    rollout.ensure_flag(everyone=True)
    assert RolloutFlag.objects.get().everyone is False
