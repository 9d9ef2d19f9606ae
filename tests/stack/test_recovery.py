"""A thousand scripted failures between the Python client and real servers: every stream comes out as without them.

Meanwhile web processes are killed; what a call that is cut off leaves behind is the next one's matter.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.stack.failing_network import ANSWERED, CALLS, script
from tests.stack.recovery import CHUNKS, KILLS, names, run
from tests.stack.servers import Stack

FAILURES = 1_000


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("servers", ["sqlite"], indirect=True)
async def test_it_works(servers: Stack) -> None:
    await survives(servers, FAILURES)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("servers", ["sqlite", "postgresql"], indirect=True)
async def test_five_times_as_many(servers: Stack) -> None:
    await survives(servers, 5 * FAILURES)


async def survives(servers: Stack, failures: int) -> None:
    before = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE origin = 'stream'")
    done = await run(servers, failures)
    assert done.wrong == []
    assert (done.failures, done.resumed) == (failures, done.streams)
    assert done.met.keys() == names(), "every way to fail was met"
    assert min(done.met.values()) > failures // 25
    assert (done.kills, done.cut >= done.kills) == (KILLS, True), "each kill cut off somebody"
    after = servers.rows("SELECT count(*) FROM streaming_auditsession WHERE origin = 'stream'")
    assert int(str(after[0][0])) - int(str(before[0][0])) == done.streams, "one session each, however often it started"


@pytest.mark.parametrize("servers", ["sqlite"], indirect=True)
def test_nothing_of_it_is_a_traceback_and_the_log_is_whole(servers: Stack) -> None:
    for web in servers.webs:
        assert web.alive
        assert "Traceback" not in web.log.read_text(errors="replace")
    done = servers.manage("audit", "verify")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(20))
def test_a_client_that_is_answered_meets_the_whole_script(seed: int) -> None:
    made = script(Random(seed), CHUNKS, 4)
    answered = [n for n, what in enumerate(made) if what in ANSWERED]
    assert len(answered) == CHUNKS
    assert answered[-1] == len(made) - 1, "no failure stands behind the last answer"
    assert sum(what in CALLS for what in made) == 4
