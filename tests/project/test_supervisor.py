"""The demo's processes start in order, come back when they may, and end together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from project.demo.child import Service
from project.demo.supervisor import StartError, Supervisor

LIMIT_S = 30.0
FOREVER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FOREVER
WITH_GRANDCHILD = (
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
    "print('grandchild', p.pid, flush=True); " + FOREVER
)


def service(name: str, code: str, *, essential: bool = False, grace_s: float = LIMIT_S, **more: object) -> Service:
    argv = (sys.executable, "-c", code)
    return Service(name, argv, dict(os.environ), essential=essential, grace_s=grace_s, **more)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Running, not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Log:
    """What was said, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def __call__(self, name: str, text: str) -> None:
        self.lines.append((name, text))
        self._news.set()

    async def until(self, seen: Callable[[list[tuple[str, str]]], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not seen(self.lines):
                self._news.clear()
                await self._news.wait()


class Clock:
    """Time passes only when the test says so; polling for readiness (below one second) merely yields."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.go_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds < 1:
            await asyncio.sleep(0)
            return
        self.asked.put_nowait(seconds)
        await self.go_on.wait()

    async def asked_for(self) -> float:
        return await asyncio.wait_for(self.asked.get(), LIMIT_S)


async def death_of(pid: int) -> None:
    """Wait for the end of a process that is nobody's child here."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    dead, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(descriptor, dead.set)
    try:
        await asyncio.wait_for(dead.wait(), LIMIT_S)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@asynccontextmanager
async def running(
    supervisor: Supervisor, stages: list[list[Service]]
) -> AsyncIterator[tuple[asyncio.Task[int], asyncio.Event]]:
    """The supervisor at work; whatever the test does, nothing of it is left afterwards."""
    ready = asyncio.Event()
    task = asyncio.create_task(supervisor.run(stages, on_ready=ready.set))
    try:
        yield task, ready
    finally:
        supervisor.stop()
        supervisor.stop()
        await asyncio.wait([task])


async def within(wanted: Awaitable[object]) -> None:
    await asyncio.wait_for(wanted, LIMIT_S)


async def test_it_works() -> None:
    log = Log()
    supervisor = Supervisor(log)
    async with running(supervisor, [[service("first", FOREVER)], [service("second", FOREVER)]]) as (task, ready):
        await within(ready.wait())
        await log.until(lambda lines: {("first", "up"), ("second", "up")} <= set(lines))
        pids = [child.pid for child in supervisor.children.values()]
        assert all(map(alive, pids))
        supervisor.stop()
        await within(task)
        assert task.result() == 0
        assert not any(map(alive, pids))


async def test_a_stage_waits_until_the_one_before_is_ready() -> None:
    log, may = Log(), asyncio.Event()

    async def ready_when_allowed() -> bool:
        log("probe", "asked")
        return may.is_set()

    supervisor = Supervisor(log)
    stages = [[service("first", FOREVER, ready=ready_when_allowed)], [service("second", FOREVER)]]
    async with running(supervisor, stages) as (_, ready):
        await log.until(lambda lines: lines.count(("probe", "asked")) > 2)
        assert set(supervisor.children) == {"first"}
        may.set()
        await within(ready.wait())
        assert set(supervisor.children) == {"first", "second"}


async def test_the_end_of_an_essential_service_ends_everything() -> None:
    log = Log()
    supervisor = Supervisor(log)
    stages = [[service("store", FOREVER)], [service("web", FOREVER, essential=True)]]
    async with running(supervisor, stages) as (task, ready):
        await within(ready.wait())
        store = supervisor.children["store"].pid
        os.kill(supervisor.children["web"].pid, signal.SIGKILL)
        await within(task)
        assert task.result() == 1
        assert not alive(store)
        assert ("demo", "the web process ended (SIGKILL); stopping everything") in log.lines


async def test_another_service_that_dies_is_reported_and_started_again_after_the_delay() -> None:
    log, clock = Log(), Clock()
    supervisor = Supervisor(log, restart_delay_s=5.0, sleep=clock.sleep)
    async with running(supervisor, [[service("worker", FOREVER)]]) as (task, _):
        await log.until(lambda lines: ("worker", "up") in lines)
        first = supervisor.children["worker"].pid
        os.kill(first, signal.SIGKILL)
        assert await clock.asked_for() == 5.0
        assert ("demo", "the worker process ended (SIGKILL); starting it again in 5 s") in log.lines
        assert supervisor.children["worker"].pid == first  # nothing new before the delay is over
        clock.go_on.set()
        await log.until(lambda lines: lines.count(("worker", "up")) == 2)
        assert supervisor.children["worker"].pid != first
        assert not task.done()


async def test_a_wish_to_stop_is_not_kept_waiting_by_a_restart_delay() -> None:
    clock = Clock()
    supervisor = Supervisor(Log(), sleep=clock.sleep)
    async with running(supervisor, [[service("worker", "raise SystemExit(3)")]]) as (task, _):
        await clock.asked_for()
        supervisor.stop()
        await within(task)
        assert task.result() == 0


async def test_what_a_child_started_itself_does_not_outlive_it() -> None:
    log, clock = Log(), Clock()
    supervisor = Supervisor(log, sleep=clock.sleep)
    async with running(supervisor, [[service("worker", WITH_GRANDCHILD)]]):
        await log.until(lambda lines: any(text.startswith("grandchild") for _, text in lines))
        grandchild = int(next(text for _, text in log.lines if text.startswith("grandchild")).split()[1])
        assert alive(grandchild)
        os.kill(supervisor.children["worker"].pid, signal.SIGKILL)
        await death_of(grandchild)


async def test_a_service_that_will_not_stop_is_killed_after_its_grace() -> None:
    log = Log()
    supervisor = Supervisor(log)
    async with running(supervisor, [[service("worker", STUBBORN, grace_s=0.2)]]) as (task, _):
        await log.until(lambda lines: ("worker", "up") in lines)
        pid = supervisor.children["worker"].pid
        supervisor.stop()
        await within(task)
        assert not alive(pid)
        assert ("demo", "worker does not stop; killing it") in log.lines


async def test_a_second_wish_to_stop_does_not_wait_for_the_grace() -> None:
    log = Log()
    supervisor = Supervisor(log)
    async with running(supervisor, [[service("worker", STUBBORN, grace_s=3_600)]]) as (task, _):
        await log.until(lambda lines: ("worker", "up") in lines)
        supervisor.stop()
        supervisor.stop()
        await within(task)


async def test_a_service_that_never_comes_up_is_an_error_and_leaves_nothing() -> None:
    async def never() -> bool:
        return False

    supervisor = Supervisor(Log(), sleep=Clock().sleep)
    stages = [[service("store", FOREVER)], [service("web", "raise SystemExit(7)", ready=never)]]
    async with running(supervisor, stages) as (task, ready):
        with pytest.raises(StartError, match=r"web did not start \(status 7\)"):
            await asyncio.wait_for(asyncio.shield(task), LIMIT_S)
        assert not ready.is_set()
        assert not any(alive(child.pid) for child in supervisor.children.values())


async def test_a_service_that_hangs_before_it_serves_is_an_error() -> None:
    async def never() -> bool:
        return False

    supervisor = Supervisor(Log(), ready_limit_s=0.3)
    async with running(supervisor, [[service("web", FOREVER, ready=never)]]) as (task, _):
        with pytest.raises(StartError, match=r"web did not answer within 0\.3 s"):
            await asyncio.wait_for(asyncio.shield(task), LIMIT_S)
        assert not alive(supervisor.children["web"].pid)


async def test_a_command_that_cannot_be_run_is_an_error() -> None:
    log = Log()
    supervisor = Supervisor(log)
    missing = Service("web", ("/nonexistent/program",), dict(os.environ), essential=True)
    async with running(supervisor, [[missing]]) as (task, _):
        await within(task)
        assert task.result() == 1
        assert ("web", "cannot run /nonexistent/program: No such file or directory") in log.lines


async def test_lines_longer_than_any_buffer_and_bytes_that_are_no_text_come_through() -> None:
    log = Log()
    code = "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\n\\xff\\nlast')"
    supervisor = Supervisor(log, sleep=Clock().sleep)
    async with running(supervisor, [[service("web", code, essential=True)]]) as (task, _):
        await within(task)
    text = "".join(line for name, line in log.lines if name == "web")
    assert text.count("x") == 300_000
    assert [line for name, line in log.lines if name == "web"][-2:] == ["\ufffd", "last"]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
async def test_children_die_with_a_supervisor_that_is_killed_outright() -> None:
    code = f"""
import asyncio, os, sys
from project.demo.child import Service
from project.demo.supervisor import Supervisor
async def main():
    say = lambda name, text: print(name, text, flush=True)
    supervisor = Supervisor(say)
    child = Service("child", (sys.executable, "-c", {FOREVER!r}), dict(os.environ))
    await supervisor.run([[child]], on_ready=lambda: print("pid", supervisor.children["child"].pid, flush=True))
asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=root, env=dict(os.environ)
    )
    assert process.stdout is not None
    pid, up = 0, False
    async with asyncio.timeout(LIMIT_S):
        while not (pid and up):
            line = (await process.stdout.readline()).decode().split()
            assert line, "the supervisor ended early"
            pid, up = (int(line[1]) if line[0] == "pid" else pid), up or line == ["child", "up"]
    assert alive(pid)
    process.kill()
    await process.wait()
    await death_of(pid)
