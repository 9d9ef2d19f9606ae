"""The page while things break: the wire is cut, the worker dies, Valkey dies."""

from __future__ import annotations

import json

from playwright.sync_api import expect

from streaming.providers.scripted import SCENARIOS
from tests.e2e.conftest import Visit
from tests.e2e.expected import visible
from tests.e2e.server import Demo, Wire, wait_for
from tests.e2e.visitor import LOST


def test_it_works(wire: Wire, visit: Visit) -> None:
    visitor = visit(wire.url).open()
    visitor.scenario("clean")
    visitor.over("allowed")
    assert wire.accepted
    visitor.assert_clean()


def test_a_cut_socket_resumes_without_a_gap_or_a_repeat(wire: Wire, visit: Visit) -> None:
    visitor = visit(wire.url).open()
    visitor.scenario("pii")
    visitor.grown(40)
    wire.cut()
    expect(visitor.page.locator("#connection")).to_contain_text("Reconnecting")
    before = visitor.answer
    wire.mend()
    visitor.connected()
    assert visitor.page.locator("#connection").inner_text() == ""
    visitor.over("redacted")
    assert len(before) < len(visitor.answer)
    visitor.assert_grew_to(visible(SCENARIOS["pii"].answer))
    visitor.assert_never_seen("536-22-8145", "4111 1111 1111 1111", "desk.seven@example.com")
    assert '"type":"resume"' in "".join(visitor.sent)
    assert visitor.page.locator(".message").count() == 2
    visitor.assert_clean(*LOST)


def test_an_answer_that_ends_while_the_wire_is_cut_is_there_afterwards(
    shared_demo: Demo, wire: Wire, visit: Visit
) -> None:
    visitor = visit(wire.url).open()
    visitor.guard("One short text, written to ann@example.org, that ends before the wire is mended.")
    visitor.grown(4)
    wire.cut()
    expect(visitor.page.locator("#connection")).to_contain_text("Reconnecting")
    newest = "select state from streaming_auditsession order by started_at desc limit 1"
    wait_for("the answer has ended", lambda: shared_demo.rows(newest) != [("ACTIVE",)])
    wire.mend()
    visitor.over("redacted")
    visitor.assert_never_seen("ann@example.org")
    assert visitor.answer.endswith("that ends before the wire is mended.")
    visitor.assert_clean(*LOST)


def test_a_dead_worker_stops_no_stream_and_its_checks_finish_when_it_is_back(own_demo: Demo, visit: Visit) -> None:
    visitor = visit(own_demo.url).open()
    own_demo.kill("celery")
    wait_for("/ready names the workers", lambda: "worker" in own_demo.get("/ready")[1], limit_s=20)
    visitor.scenario("judge")
    visitor.over("allowed")
    visitor.assert_grew_to(SCENARIOS["judge"].answer)
    assert "waiting" in visitor.guardrail("harm")
    visitor.state("MONITORING")
    visitor.state("COMPLETE", timeout_s=90)
    assert "would block" in visitor.guardrail("harm")
    rows = own_demo.rows("select state, would_have from streaming_auditsession")
    assert rows == [("COMPLETE", "blocked")]
    assert own_demo.rows("select count(*) from streaming_finding") == [(1,)]
    visitor.assert_clean()


def test_a_dead_store_is_a_clear_error_and_no_session_is_lost(own_demo: Demo, visit: Visit) -> None:
    visitor = visit(own_demo.url).open()
    visitor.scenario("clean")
    visitor.grown(40)
    own_demo.kill("valkey")
    banner = visitor.page.locator("#notices [data-error]").first
    expect(banner).to_be_visible(timeout=20_000)
    expect(banner).not_to_contain_text("Traceback")
    status, body = own_demo.get("/ready")
    assert status == 503
    assert json.loads(body)
    partial = visitor.answer
    assert SCENARIOS["clean"].answer.startswith(partial)

    def ended() -> bool:
        return own_demo.rows("select state, outcome from streaming_auditsession") == [("COMPLETE", "error")]

    wait_for("the session is recorded as ended", ended, limit_s=60)
    wait_for("the store is back", lambda: own_demo.get("/ready")[0] == 200, limit_s=60)
    visitor.page.reload()
    visitor.connected()
    assert len(visitor.answers) == 1
    assert SCENARIOS["clean"].answer.startswith(visitor.answer)
    visitor.scenario("clean")
    expect(visitor.page.locator(".answer")).to_have_count(2)
    visitor.over("allowed")
    assert visitor.answer == SCENARIOS["clean"].answer
    visitor.assert_clean()
