"""The session log in Redis (or Valkey): a capped, expiring stream per session.

Protects three rules. ``seq`` is given by the script that appends, so writers in several processes never share one.
A lost wake-up is no hang: readers also poll. And a reader in this process costs no second round trip: it is given what
the append has just written (``Recent``), and the append itself returns which *other* processes read along, and only
those are woken through the channel layer. And the store never sees a word: it may be dumped, copied and replicated, so
events are encrypted in it, each bound to its session (``sealed``).

Keys, all with ``{session}`` as hash tag and expiring: ``sg:log`` the stream, ``sg:seq`` the last seq, ``sg:readers``
processes that read along (score: until when that is believed), ``sg:runner`` who runs it, ``sg:stop`` asked to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

import structlog
from channels.layers import BaseChannelLayer, get_channel_layer
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from streaming.conf import Conf, conf, redis_url
from streaming.core.wire import from_json, to_json
from streaming.log import LocalEvents, LogUnavailable, Payload, Sent
from streaming.pipe import Pipe
from streaming.polls import Polls
from streaming.sealed import SealBroken, seal, unseal
from streaming.wake import Wake

T = TypeVar("T")


class Companion(Protocol):
    """Something that leans on a log and ends with it."""

    async def aclose(self) -> None:
        """Stop."""


C = TypeVar("C", bound=Companion)
logger = structlog.get_logger(__name__)

APPENDING = """
local function append(seq, first)
  for i = first, #ARGV do
    seq = seq + 1
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], string.format('%d-0', seq), 'e', ARGV[i])
  end
  redis.call('SET', KEYS[2], string.format('%d', seq), 'EX', ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[1])
  local others = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], redis.call('TIME')[1], '+inf')) do
    if name ~= ARGV[3] then others[#others + 1] = name end
  end
  return {seq, others}
end
"""
"""How every script appends: the payloads from ``ARGV[first]`` on, behind ``seq``."""

APPEND = (
    APPENDING
    + """
local seq = tonumber(redis.call('GET', KEYS[2]) or '0')
if seq < tonumber(ARGV[5]) then seq = tonumber(ARGV[4]) end
return append(seq, 6)
"""
)

READING = """
local now = redis.call('TIME')[1]
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[1], ARGV[2])
  redis.call('EXPIRE', key, ARGV[3])
end
return 1
"""
ATTENDED = "return redis.call('ZCOUNT', KEYS[1], redis.call('TIME')[1], '+inf')"
"""By the store's clock: processes whose clocks differ would take each other's readers for gone."""

BELIEVED_S = 20
"""Seconds a reader's process is believed after its last sign of life; it renews every quarter of that."""

RECENT_EVENTS = 64
"""How far behind a reader of the same process may be and still not ask the store."""

NO_CHANNEL = "none!"
"""Names a process that cannot be woken (yet)."""

MAX_CONNECTIONS = 32
"""Of a process to its store. More would carry no more to a store that does one thing at a time, and none is given back:
a moment in which a thousand sessions want something would cost a thousand connections for good."""

ROOM_LIMIT_S = 3.0
"""So long a call waits for one of them; then the store counts as away."""

CALL_LIMIT_S = 5.0
"""So long a call takes, a connection that is made for it included."""

WAKE_LIMIT_S = 1.0
"""A wake-up is a convenience: it may never hold up the writer for longer than a reader's poll takes."""


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """Keys in the store, and the bytes that its allocator has given out (not what the system gave the process)."""

    keys: int
    memory_bytes: int


def connect(url: str, *, limit_s: float | None = 3.0) -> Redis:
    """A client that fails at once: a caller here would rather tell the reader than wait and retry.

    ``limit_s`` None: the caller has a time limit of its own. The library makes a task and two timers for its own, and
    more than the rest of a call costs.
    """
    return Redis.from_url(url, socket_connect_timeout=2, socket_timeout=limit_s, retry=Retry(NoBackoff(), 0))


class Arguments(TypedDict):
    """Of a script."""

    keys: list[str]
    args: list[str | float | bytes]


class Recent:
    """The latest events that this process appended to a session, with no gap among them.

    Exists so that a reader beside the writer, which is the common case, need not ask the store for what was here a
    moment ago. Whatever another process appends makes a gap, or is told by a wake-up: then it starts anew.
    """

    __slots__ = ("_events", "_last")

    def __init__(self) -> None:
        self._events: list[dict[str, object]] = []
        self._last = 0

    def add(self, events: Sequence[dict[str, object]], last: int) -> None:
        """Add events that were appended together; ``last``: the seq of the last one."""
        first = last - len(events) + 1
        if first != self._last + 1:
            self._events.clear()
        self._events.extend({**event, "seq": seq} for seq, event in enumerate(events, start=first))
        del self._events[:-RECENT_EVENTS]
        self._last = last

    @property
    def last(self) -> int:
        """The seq of the latest one."""
        return self._last

    def after(self, seq: int, count: int) -> list[dict[str, object]]:
        """Events above ``seq``, at most ``count``; none if the next one is not among these."""
        skipped = seq - (self._last - len(self._events))
        return self._events[skipped : skipped + count] if skipped >= 0 else []

    def forget(self, seq: int) -> None:
        """Nobody will ask for what stands at ``seq`` or before it any more."""
        del self._events[: max(0, seq - (self._last - len(self._events)))]


class _Here:
    """A reader or a runner of a session while it is there. No generator: every open stream would keep two of them."""

    __slots__ = ("_event", "_log", "_runs", "_session_id")

    def __init__(self, log: RedisLog, session_id: str, *, runs: bool) -> None:
        self._log, self._session_id, self._runs = log, session_id, runs

    async def __aenter__(self) -> Wake:
        came = self._log.came_to_run if self._runs else self._log.came_to_read
        self._event = await came(self._session_id)
        return self._event

    async def __aexit__(self, *_: object) -> None:
        left = self._log.left_running if self._runs else self._log.left_reading
        await left(self._session_id, self._event)


class RedisLog:
    """The log of one event loop. ``aclose`` stops its two background tasks and its connections."""

    def __init__(self, url: str, layer: BaseChannelLayer | None, settings: Conf) -> None:
        self._redis = connect(url, limit_s=None)  # ``_in_turn`` has a limit for all of a call
        self._append = self._redis.register_script(APPEND)
        self._pipe = Pipe(self._redis.connection_pool)
        self._scripts: dict[str, AsyncScript] = {}
        self._layer, self._conf = layer, settings
        self._channel = NO_CHANNEL + uuid4().hex
        self._starting = asyncio.Lock()
        self._readers, self._runners = LocalEvents(), LocalEvents()
        self._recent: dict[str, Recent] = {}
        self._stops = Polls(lambda sessions: self._all("stop", sessions), self._runners.sessions)
        self._lasts = Polls(lambda sessions: self._all("seq", sessions), self._runners.sessions)
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Future[object]] = set()
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._companions: dict[Callable[..., Companion], Companion] = {}

    def append(
        self, session_id: str, payloads: Sequence[Payload], *, ms: int, floor: int = 0, known: int = 1
    ) -> Awaitable[int]:
        """See ``SessionLog``. Sessions that run here have a connection for it (``Pipe``)."""
        events: list[dict[str, object]] = [{**payload, "session_id": session_id, "ms": ms} for payload in payloads]
        asked = self._appending(session_id, (), (floor, known), events)
        if self._pipe.ready:
            return self._sent(session_id, events, asked)
        if session_id in self._runners:
            self._pipe.open_soon()
        return self._called(session_id, events, asked)

    async def read(self, session_id: str, after: int, count: int = 500) -> list[dict[str, object]]:
        """See ``SessionLog``."""
        if (recent := self._recent.get(session_id)) is not None:
            if self._readers.alone(session_id):
                recent.forget(after)
            if events := recent.after(after, count):
                return events
            if recent.last <= after and session_id in self._runners:
                last = await self._lasts.about(session_id)
                if last is not None and int(last) <= after:
                    return []
        answer = await self._reach(self._redis.xrange(_key("log", session_id), min=f"({after}-0", count=count))
        rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", answer)
        return [
            {**event, "seq": int(name.split(b"-")[0])}
            for name, row in rows
            if (event := _opened(row[b"e"], session_id)) is not None
        ]

    def attend(self, session_id: str) -> AbstractAsyncContextManager[Wake]:
        """See ``SessionLog``. Does not raise when the store is away; the first ``read`` says so."""
        return _Here(self, session_id, runs=False)

    def run(self, session_id: str) -> AbstractAsyncContextManager[Wake]:
        """See ``SessionLog``. Does not raise when the store is away; the first ``append`` says so."""
        return _Here(self, session_id, runs=True)

    async def came_to_read(self, session_id: str) -> Wake:
        """A reader is there, from now on."""
        await self._start()
        event = self._readers.add(session_id)
        try:
            with contextlib.suppress(LogUnavailable):
                await self._say_that_we_read([session_id])
        except BaseException:
            await self.left_reading(session_id, event)
            raise
        return event

    async def left_reading(self, session_id: str, event: Wake) -> None:
        """It is gone."""
        if self._readers.remove(session_id, event):
            self._recent.pop(session_id, None)
            with contextlib.suppress(LogUnavailable):
                await self._reach(self._redis.zrem(_key("readers", session_id), self._channel))

    async def came_to_run(self, session_id: str) -> Wake:
        """Who runs the session is there, from now on."""
        await self._start()
        event = self._runners.add(session_id)
        try:
            with contextlib.suppress(LogUnavailable):
                key = _key("runner", session_id)
                await self._reach(self._redis.set(key, self._channel, ex=self._conf.log_ttl_s))
        except BaseException:
            await self.left_running(session_id, event)
            raise
        return event

    async def left_running(self, session_id: str, event: Wake) -> None:
        """It runs no more."""
        self._runners.remove(session_id, event)

    async def attended(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        if session_id in self._readers:
            return True
        return bool(await self.evaluate(ATTENDED, [_key("readers", session_id)], []))

    async def interrupt(self, session_id: str) -> None:
        """See ``SessionLog``. A session of this process is stopped even when the store is away."""
        if self._runners.set(session_id):
            return
        await self._reach(self._redis.set(_key("stop", session_id), 1, ex=self._conf.log_ttl_s))
        runner = cast("bytes | None", await self._reach(self._redis.get(_key("runner", session_id))))
        if runner:
            await self._wake(runner.decode(), {"type": "log.stop", "session": session_id})

    async def interrupted(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        if session_id in self._runners:
            return await self._stops.about(session_id) is not None
        return bool(await self._reach(self._redis.exists(_key("stop", session_id))))

    async def say_alive(self, session_id: str) -> None:
        """See ``SessionLog``."""
        ttl_ms = round(self._conf.stale_s * 1000)
        await self._reach(self._redis.set(_key("alive", session_id), self._channel, px=ttl_ms))

    async def alive(self, session_id: str) -> bool:
        """See ``SessionLog``."""
        return bool(await self._reach(self._redis.exists(_key("alive", session_id))))

    async def ping(self) -> None:
        """Raises ``LogUnavailable`` when the store cannot be reached."""
        await self._reach(self._redis.ping())

    async def eviction(self) -> str:
        """The policy by which the store throws keys away when it is full; empty if it does not. Raises
        ``LogUnavailable``.
        """
        found = cast("dict[str, object]", await self._reach(self._redis.info("memory")))
        policy = str(found.get("maxmemory_policy", "noeviction"))
        return policy if found.get("maxmemory") and policy != "noeviction" else ""

    async def usage(self) -> StoreUsage:
        """What the store holds, at a cost that does not grow with it. Raises ``LogUnavailable``."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.dbsize()
        pipe.info("memory")
        keys, memory = cast("tuple[int, dict[str, object]]", await self._reach(pipe.execute()))
        return StoreUsage(int(keys), int(str(memory["used_memory"])))

    async def evaluate(self, script: str, keys: Sequence[str], args: Sequence[str | float | bytes]) -> object:
        """Run a Lua script in the store that the log is in. Raises ``LogUnavailable``."""
        made = self._script(script)
        if self._pipe.ready:
            answer = await self._asked(("EVALSHA", made.sha, len(keys), *keys, *args))
            if not isinstance(answer, LogUnavailable):
                return answer
            if not str(answer.__cause__).startswith("NOSCRIPT"):  # that one has not been made
                raise answer
        return await self._reach(made(keys=list(keys), args=list(args)))

    def hasten(self) -> None:
        """Scripts will be run often: from the next one on they have a connection (``Pipe``)."""
        self._pipe.open_soon()

    async def commit(
        self, script: str, session_id: str, key: str, args: Sequence[str | float | bytes], payloads: Sequence[Payload],
        *, ms: int,
    ) -> list[object] | None:  # fmt: skip
        """Change ``key`` and append, both or neither: whatever is cut off, one is never there without the other.

        ``script`` stands behind ``APPENDING`` and finds ``key`` as ``KEYS[4]``, ``args`` from ``ARGV[4]`` on and the
        payloads behind them. It answers ``{append(…), …}``, or false when it has done nothing: None here. What comes
        back is the last seq and what else the script answers. Raises ``LogUnavailable``.
        """
        events = [{**payload, "session_id": session_id, "ms": ms} for payload in payloads]
        call = self._script(APPENDING + script)(**self._appending(session_id, (key,), args, events))
        answer = cast("list[object] | None", await self._reach(call))
        if not answer:
            return None
        self._recent.pop(session_id, None)
        seq, others = cast("tuple[int, list[bytes]]", answer[0])
        self._readers.set(session_id)
        await self._wake_others(session_id, others)
        return [seq, *answer[1:]]

    async def count(self, pattern: str) -> int:
        """How many keys match; for the few keys of workers. Raises ``LogUnavailable``."""

        async def scan() -> int:
            return len([key async for key in self._redis.scan_iter(match=pattern, count=1_000)])

        return await self._reach(scan())

    def companion(self, make: Callable[[RedisLog], C]) -> C:
        """What this log's event loop has one of, made at the first time and closed before the log is."""
        if make not in self._companions:
            self._companions[make] = make(self)
        return cast("C", self._companions[make])

    async def aclose(self) -> None:
        """Stop the background tasks and close the connections."""
        for companion in self._companions.values():
            await companion.aclose()
        self._companions.clear()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._under_way, return_exceptions=True)
        await self._pipe.aclose()
        await self._redis.aclose()

    def _script(self, text: str) -> AsyncScript:
        if text not in self._scripts:
            self._scripts[text] = self._redis.register_script(text)
        return self._scripts[text]

    async def _called(self, session_id: str, events: Sequence[dict[str, object]], asked: Arguments) -> int:
        """Append through the library's client."""
        seq, others = cast("tuple[int, list[bytes]]", await self._reach(self._append(**asked)))
        self._appended(session_id, events, seq)
        await self._wake_others(session_id, others)
        return seq

    def _sent(self, session_id: str, events: Sequence[dict[str, object]], asked: Arguments) -> Sent:
        """Append through the pipe. Readers here are told with the answer, whether or not anybody still waits for it.

        The script goes along each time: it is short, and a store that has forgotten it is no case of its own.
        """
        told = Sent()

        def answered(answer: object) -> None:
            if not isinstance(answer, list | LogUnavailable):
                answer = LogUnavailable("the session log has answered something else")
            if isinstance(answer, LogUnavailable):
                told.set_exception(answer)
                return
            seq, others = cast("tuple[int, list[bytes]]", answer)
            self._appended(session_id, events, seq)
            if others:
                waking = asyncio.ensure_future(self._wake_others(session_id, others))
                self._under_way.add(cast("asyncio.Future[object]", waking))
                waking.add_done_callback(self._arrived)
                waking.add_done_callback(lambda _: told.set_result(seq))
            else:
                told.set_result(seq)

        keys = asked["keys"]
        self._pipe.send(("EVAL", APPEND, len(keys), *keys, *asked["args"]), answered, CALL_LIMIT_S)
        return told

    def _asked(self, command: Sequence[str | float | bytes]) -> asyncio.Future[object]:
        """What the store answers through the pipe, or a ``LogUnavailable``."""
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def answered(answer: object) -> None:
            if not told.done():  # else nobody waits any more
                told.set_result(answer)

        self._pipe.send(command, answered, CALL_LIMIT_S)
        return told

    def _appending(
        self, session_id: str, keys: Sequence[str], args: Sequence[str | float | bytes],
        events: Sequence[dict[str, object]],
    ) -> Arguments:  # fmt: skip
        """What a script that appends is called with."""
        texts = [seal(to_json(event), context=_sealed_for(session_id)) for event in events]
        limits: list[str | float | bytes] = [self._conf.log_ttl_s, self._conf.log_max_events, self._channel]
        named = [_key(name, session_id) for name in ("log", "seq", "readers")]
        return {"keys": [*named, *keys], "args": [*limits, *args, *texts]}

    def _appended(self, session_id: str, events: Sequence[dict[str, object]], seq: int) -> None:
        """Tell the readers of this process what stands in the log now, up to ``seq``."""
        if session_id in self._readers:
            self._recent.setdefault(session_id, Recent()).add(events, seq)
        self._readers.set(session_id)

    async def _wake_others(self, session_id: str, channels: Iterable[bytes]) -> None:
        """Wake the readers of other processes."""
        for name in channels:
            await self._wake(name.decode(), {"type": "log.wake", "session": session_id})

    async def _reach(self, call: Awaitable[T]) -> T:
        """Wait for a call to the store. Raises ``LogUnavailable``.

        The call runs in a task of its own: the client library loses a cancellation that comes at certain moments of
        a command, and a reader that cannot be cancelled would outlive its socket. So the caller is cancelled, and
        the command (bounded by the socket's time limits) comes to its end beside it.
        """
        task = asyncio.ensure_future(self._in_turn(call))
        self._under_way.add(cast("asyncio.Future[object]", task))
        task.add_done_callback(self._arrived)
        try:
            return await asyncio.shield(task)
        except (RedisError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"the session log cannot be reached ({type(error).__name__})") from error

    async def _in_turn(self, call: Awaitable[T]) -> T:
        """The call, once it has a connection to itself."""
        if self._room.locked():
            try:
                async with asyncio.timeout(ROOM_LIMIT_S):
                    await self._room.acquire()
            except BaseException:
                if isinstance(call, Coroutine):
                    call.close()
                raise
        else:
            await self._room.acquire()
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                return await call
        finally:
            self._room.release()

    def _arrived(self, done: asyncio.Future[T]) -> None:
        self._under_way.discard(cast("asyncio.Future[object]", done))
        if not done.cancelled():
            done.exception()  # its caller may be gone, and then nobody else looks at it

    async def _briefly(self, call: Awaitable[T]) -> T | None:
        """The call's result if it comes soon; a wake-up is a convenience and must hold up nobody."""
        try:
            async with asyncio.timeout(WAKE_LIMIT_S):
                return await self._reach(call)
        except (LogUnavailable, TimeoutError) as error:
            logger.debug("wake_lost", error=str(error))
            return None

    async def _start(self) -> None:
        async with self._starting:  # pump and first reader come at the same time
            if not self._tasks:
                await self._begin()

    async def _begin(self) -> None:
        if self._layer is not None:
            await self._subscribe(self._layer)
        for loop in (self._keep(), *([self._listen(self._layer)] if self._layer else [])):
            task = asyncio.get_running_loop().create_task(loop)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _subscribe(self, layer: BaseChannelLayer) -> None:
        """Get a channel to be woken on; while the store is away there is none, and readers poll."""
        self._channel = await self._briefly(layer.new_channel()) or self._channel

    async def _all(self, name: str, sessions: Sequence[str]) -> object:
        """The values of a key for all of these sessions."""
        return await self._reach(self._redis.mget([_key(name, session_id) for session_id in sessions]))

    async def _say_that_we_read(self, sessions: Sequence[str]) -> None:
        keys = [_key("readers", session_id) for session_id in sessions]
        await self.evaluate(READING, keys, [BELIEVED_S, self._channel, self._conf.log_ttl_s])

    async def _keep(self) -> None:
        """One task per process renews what all its readers say, so that a thousand sockets are one round trip."""
        while True:
            await asyncio.sleep(BELIEVED_S / 4)
            if sessions := self._readers.sessions():
                with contextlib.suppress(LogUnavailable):
                    await self._say_that_we_read(sessions)

    async def _listen(self, layer: BaseChannelLayer) -> None:
        """Hand wake-ups from other processes to the events here; lives through a store that goes and comes back."""
        while True:
            if self._channel.startswith(NO_CHANNEL):
                await asyncio.sleep(1.0)
                await self._subscribe(layer)
                continue
            try:
                message = await layer.receive(self._channel)
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(1.0)
                continue
            session_id = str(message.get("session", ""))
            if message.get("type") == "log.stop":
                self._runners.set(session_id)
            else:
                self._recent.pop(session_id, None)  # there is more than this process knows of
                self._readers.set(session_id)

    async def _wake(self, channel: str, message: dict[str, object]) -> None:
        if self._layer is None or channel.startswith(NO_CHANNEL):
            return
        await self._briefly(self._layer.send(channel, message))


def _sealed_for(session_id: str) -> str:
    return f"log/{session_id}"


def _opened(stored: bytes, session_id: str) -> dict[str, object] | None:
    """The event again; None for what was written under another key: it is as lost as if the store had forgotten it."""
    try:
        return from_json(unseal(stored, context=_sealed_for(session_id)))
    except SealBroken:
        logger.warning("log_event_cannot_be_opened", session=session_id)
        return None


def _key(name: str, session_id: str) -> str:
    return f"sg:{name}:{{{session_id}}}"


_logs: WeakKeyDictionary[asyncio.AbstractEventLoop, RedisLog] = WeakKeyDictionary()


def shared_log() -> RedisLog:
    """The log of the running event loop, made on first use. Raises ``LogUnavailable`` when none is configured."""
    url = redis_url()
    if not url:
        raise LogUnavailable("no session log is configured (REDIS_URL is not set)")
    loop = asyncio.get_running_loop()
    if loop not in _logs:
        _logs[loop] = RedisLog(url, get_channel_layer(), conf())
    return _logs[loop]


@asynccontextmanager
async def own_log() -> AsyncIterator[RedisLog]:
    """A log for one piece of work with an event loop of its own (a worker's task); closed at the end."""
    url = redis_url()
    if not url:
        raise LogUnavailable("no session log is configured (REDIS_URL is not set)")
    log = RedisLog(url, get_channel_layer(), conf())
    try:
        yield log
    finally:
        await log.aclose()


async def close_shared_log() -> None:
    """Close the running loop's log, if it has one."""
    if log := _logs.pop(asyncio.get_running_loop(), None):
        await log.aclose()
