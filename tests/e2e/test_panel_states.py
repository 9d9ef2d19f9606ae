"""The panel's rare states on the real page, written by the server's own renderer: each has its sign and its word, and
what is known of a guardrail and not of an answer is not forgotten when the next answer begins."""

from __future__ import annotations

import re

from playwright.sync_api import WebSocketRoute, expect

from streaming.fragments import FragmentContext, render
from tests.e2e.conftest import Visit
from tests.e2e.server import Demo

STATES = {
    "tone": ("circuit_open", "✕ circuit open", "not asked: the circuit is open after repeated failures"),
    "pii": ("slower_than_declared", "◔ slower than declared", ""),
    "secrets": ("timeout", "✕ timed out", "no answer within 0.8 s"),
    "harm": ("expired", "✕ expired", "not checked within 900 s"),
}


def test_it_works(shared_demo: Demo, visit: Visit) -> None:
    visitor = visit(shared_demo.url)
    page = visitor.page
    sockets: list[WebSocketRoute] = []
    silent: set[str] = set()

    def between(socket: WebSocketRoute) -> None:
        """The server's events, but for those that would tell of the guardrails in ``silent``."""
        server = socket.connect_to_server()
        sockets.append(socket)

        def on(frame: str | bytes) -> None:
            told = re.search(r'data-type="guardrail_status".*?<span id="g-(\w+)-state"', str(frame), re.DOTALL)
            if told is None or told[1] not in silent or 'data-state="idle"' in str(frame):
                socket.send(frame)

        server.on_message(on)

    page.route_web_socket("**/ws/chat/", between)
    visitor.open()
    visitor.scenario("clean")
    visitor.state("COMPLETE")
    session = page.locator("#run").get_attribute("data-session") or ""
    for name, (state, _, error) in STATES.items():
        event = {"type": "guardrail_status", "session_id": session, "guardrail": name, "state": state, "error": error}
        html = render({**event, "last_ms": 812.0, "p95_ms": 1_234.0}, context=FragmentContext())
        sockets[0].send(html)
    for name, (state, words, error) in STATES.items():
        row = page.locator(f"#g-{name}")
        expect(row.locator(".status-word")).to_have_attribute("data-state", state)
        expect(row.locator(".status-word")).to_contain_text(words)
        expect(row.locator(".status-word")).to_contain_text(error)
        expect(row).to_contain_text("812 ms")
        expect(row).to_contain_text("1.2 s")
    silent |= {"tone", "secrets"}
    visitor.scenario("clean")
    expect(page.locator(".answer")).to_have_count(2)
    visitor.over("allowed")
    visitor.state("COMPLETE")
    expect(page.locator("#g-tone-state")).to_contain_text("circuit open")
    expect(page.locator("#g-secrets-state")).to_contain_text("idle")
    expect(page.locator("#g-pii-state")).to_contain_text("passed")
    expect(page.locator("#g-harm-state")).to_contain_text("passed")
    visitor.assert_clean()
