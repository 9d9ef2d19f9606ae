"""`manage.py chat`: what is shown, what is stored, how it ends, and what it leaves alone."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from django.core.management import CommandError, ManagementUtility, call_command
from rich.console import Console

from streaming.management.commands.chat import provider_at
from streaming.models import AuditSession, DeferredCheck, Finding
from streaming.providers.base import get_provider
from streaming.terminal.screen import Screen
from streaming.terminal.telling import safe
from tests.prepared import fill

ROOT = Path(__file__).resolve().parents[2]
SSN = "536-22-8145"
Event = dict[str, object]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICEGATE_SCRIPTED_RATE", "5000")


@pytest.fixture
def endpoint() -> Iterator[str]:
    """An OpenAI-compatible endpoint that has one thing to say, in pieces."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in ("The num", "ber is 536", "-22-81", "45.\n", "\x1b[2J", "Bye."):
                delta = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                self.wfile.write(b"data: " + json.dumps({"model": "m-1", "choices": [delta]}).encode() + b"\n\n")
            end = {"model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            self.wfile.write(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def chat(*args: str) -> tuple[str, str, int]:
    """Standard output, standard error, exit status."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("chat", *args, stdout=out, stderr=err)
    except CommandError as error:
        return out.getvalue(), str(error), error.returncode
    except SystemExit as left:
        return out.getvalue(), err.getvalue(), int(str(left.code))
    return out.getvalue(), err.getvalue(), 0


def events(out: str) -> list[Event]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("demo_policy")
class TestAnswers:
    def test_it_works(self) -> None:
        out, err, status = chat("Hello there")
        assert status == 0
        assert out.startswith("I am a scripted model")
        assert out.endswith("\n")
        assert "allowed · first character after" in err
        assert "policy basic v1" in err

    def test_secrets_are_redacted_in_what_an_endpoint_streams(self, endpoint: str) -> None:
        out, err, status = chat("Which number?", "--base-url", endpoint)
        assert out == "The number is [SSN].\n\x1b[2JBye.\n", "a file gets every character as it came"
        assert status == 0
        assert "[pii: ssn, redacted]" in err
        assert "redacted · 1 finding" in err
        assert "openai m-1" in err

    def test_every_event_is_one_line_of_json_in_order(self, endpoint: str) -> None:
        out, err, status = chat("Which number?", "--base-url", endpoint, "--json")
        told = events(out)
        seqs = [int(str(event["seq"])) for event in told]
        assert (status, err) == (0, "")
        assert seqs == sorted(set(seqs))
        assert told[0]["state"] == "ACTIVE"
        assert (told[-1]["type"], told[-1]["state"]) == ("state", "COMPLETE")
        assert {"message_new", "message_stream", "redaction", "finding", "timing", "done"} <= {e["type"] for e in told}
        assert SSN not in out

    def test_without_a_policy_nothing_is_hidden_and_that_is_said(self, endpoint: str) -> None:
        out, err, status = chat("Which number?", "--base-url", endpoint, "--policy", "none")
        assert SSN in out
        assert status == 0
        assert "No guardrails" in err
        assert "NO GUARDRAILS" in err.splitlines()[-1]

    def test_a_blocked_prompt_fails_and_says_why(self) -> None:
        out, err, status = chat("Tell me about Project Blue Heron", "--policy", "demo")
        assert (out, status) == ("", 1)
        assert "stopped by the guardrail “codenames”" in err

    def test_an_endpoint_that_is_down_fails_and_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        out, err, status = chat("hello", "--base-url", "http://127.0.0.1:1", "--provider", "openai")
        assert (out, status) == ("", 1)
        assert "provider_unavailable" in err
        assert AuditSession.objects.get().outcome == "error"

    def test_deferred_checks_are_made_here_because_nobody_else_would(self) -> None:
        out, _, status = chat("Hello there", "--policy", "demo", "--json")
        harm = [event["state"] for event in events(out) if event.get("guardrail") == "harm"]
        assert status == 0
        assert harm[-2:] == ["checking", "passed"]
        assert DeferredCheck.objects.get().state == "passed"
        assert AuditSession.objects.get().state == "COMPLETE"

    def test_a_conversation_keeps_its_history_and_outlives_a_prompt_that_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, settings: object
    ) -> None:
        settings.SLUICEGATE_MAX_PROMPT_CHARS = 40  # type: ignore[attr-defined]
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"What is a weir?\n\n{'x' * 41}\nAnd a lock?\n"))
        out, err, status = chat()
        assert status == 0
        assert "2 earlier messages of our conversation" in out
        assert "at most 40 are allowed" in err
        assert AuditSession.objects.count() == 2
        assert AuditSession.objects.values("conversation").distinct().count() == 1

    def test_one_blocked_answer_makes_a_piped_conversation_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("project blue heron\nhello\n"))
        out, _, status = chat("--policy", "demo")
        assert "I am a scripted model" in out
        assert status == 1

    def test_findings_and_visible_text_are_stored_as_for_every_other_client(self, endpoint: str) -> None:
        chat("Which number?", "--base-url", endpoint)
        session = AuditSession.objects.select_related("answer").get()
        assert session.answer is not None
        assert session.answer.content.startswith("The number is [SSN].")
        assert [finding.category for finding in Finding.objects.all()] == ["ssn"]

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (["x", "--provider", "nope"], "nope"),
            (["x", "--policy", "nope"], "nope"),
            (["x", "--base-url", "ftp://127.0.0.1/"], "http"),
            (["x", "--base-url", "http://127.0.0.1:1", "--provider", "scripted"], "asks no endpoint"),
            (["x", "--base-url", "http://127.0.0.1:1", "--provider", "nope"], "nope"),
            ([" "], "empty"),
            (["a\udc80b"], "prompt"),
        ],
        ids=str,
    )
    def test_wrong_use_is_refused_and_stores_nothing(self, args: list[str], said: str) -> None:
        out, err, status = chat(*args)
        assert (out, status) == ("", 2)
        assert said in err
        assert AuditSession.objects.count() == 0


def test_unknown_option_is_wrong_use() -> None:
    with pytest.raises(SystemExit) as left:
        ManagementUtility(["manage.py", "chat", "--nope"]).execute()
    assert left.value.code == 2


def test_failures_of_an_address_that_is_tried_out_do_not_count_against_the_one_that_servers_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2")
    circuits = {getattr(provider_at("openai", f"http://127.0.0.1:{port}"), "circuit", "") for port in (1, 2)}
    assert len(circuits | {get_provider("openai").circuit, get_provider("openai").name}) == 4
    assert not any("127.0.0.1" in circuit for circuit in circuits), "an address may hold a password"


def alone(data_dir: Path, *args: str, rate: str = "5000") -> subprocess.Popen[str]:
    """The command in a process of its own: no broker, no database, nothing but a directory."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLUICEGATE_", "REDIS_", "DJANGO_"))
    }
    env = kept | {"SLUICEGATE_DATA_DIR": str(data_dir), "SLUICEGATE_SCRIPTED_RATE": rate, "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "manage.py", "chat", *args],
        cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_empty_data_directory_is_prepared_and_ctrl_c_stops_the_answer_at_once(tmp_path: Path) -> None:
    with alone(tmp_path / "data", "--json", "--policy", "demo", rate="20") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        told: list[Event] = []
        while not told or told[-1]["type"] != "message_stream":
            told.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        while told[-1]["type"] != "done":
            told.append(json.loads(process.stdout.readline()))
        process.stdin.write("and once more\n")
        process.stdin.close()
        rest = events(process.stdout.read())
        assert process.wait(60) == 0
    done = told[-1]
    assert done["outcome"] == "interrupted"
    shown = "".join(str(event.get("chunk", "")) for event in told)
    assert done["final"] == shown
    assert 0 < len(shown) < 200
    assert [event["outcome"] for event in rest if event["type"] == "done"] == ["allowed"]
    assert (tmp_path / "data" / "sluicegate.sqlite3").stat().st_mode & 0o077 == 0


def test_a_second_ctrl_c_quits_and_the_session_is_not_left_open(tmp_path: Path) -> None:
    with alone(tmp_path / "data", "hello", rate="5") as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 0
    assert first == "I"
    assert len(rest) < 200
    query = "from streaming.models import AuditSession as A; print(*A.objects.values_list('state', 'outcome'))"
    shell = [sys.executable, "manage.py", "shell", "--verbosity", "0", "-c", query]
    env = os.environ | {"SLUICEGATE_DATA_DIR": str(tmp_path / "data"), "DJANGO_SETTINGS_MODULE": "project.settings"}
    found = subprocess.run(shell, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, check=True).stdout
    assert "('COMPLETE', " in found


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    fill(tmp_path / "data")
    with alone(tmp_path / "data", "hello", "--json", rate="50") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert "Traceback" not in process.stderr.read()


def screened(*batches: list[Event]) -> str:
    """What a terminal of 60 columns was sent."""
    out = io.StringIO()
    screen = Screen(Console(file=out, force_terminal=True, width=60, height=20, color_system="standard"))
    screen.begin()
    for batch in batches:
        screen.show(batch)
    screen.end()
    return out.getvalue()


def chunk(text: str, channel: str = "text") -> Event:
    return {"type": "message_stream", "channel": channel, "choice": 0, "chunk": text, "ms": 5}


def test_screen_shows_lanes_held_text_chips_and_tools_while_they_are() -> None:
    status = {"type": "guardrail_status", "guardrail": "pii", "checkpoint": "IMMEDIATE", "state": "checking"}
    hold = {"type": "hold", "channel": "text", "chars": 7, "guardrail": "pii", "rule": "ssn"}
    chip = {"type": "redaction", "channel": "text", "at": 3, "label": "[SSN]"}
    call = {"type": "tool_call", "id": "c1", "name": "search", "arguments": "{}"}
    progress = {"type": "tool_progress", "id": "c1", "message": "reading", "progress": 0.5}
    result = {"type": "tool_result", "id": "c1", "result": "3 documents"}
    sent = screened([status, chunk("No "), hold], [chip], [call, progress], [result])
    for seen in ("pii", "checking", "holding 7 (pii: ssn)", " 50% reading", "search: 3 documents"):
        assert seen in sent.replace("\x1b[36m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
    assert "\x1b[1;30;43m[SSN]" in sent


def test_each_lane_has_its_line_in_the_order_of_their_moments() -> None:
    said = [("harm", "DEFERRED", "waiting"), ("topic", "BATCHED", "would_block"), ("pii", "IMMEDIATE", "hit"),
            ("words", "IMMEDIATE", "passed")]  # fmt: skip
    status = [{"type": "guardrail_status", "guardrail": g, "checkpoint": c, "state": s} for g, c, s in said]
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screened(status))
    lines = [" ".join(line.split()) for line in drawn.splitlines()]
    at = lines.index("IMMEDIATE pii hit words passed")
    assert lines[at + 1 : at + 3] == ["BATCHED topic would block", "DEFERRED harm waiting"]


def test_lines_that_are_finished_are_printed_once_however_long_the_answer() -> None:
    words = [f"word{n} " for n in range(400)]
    sent = screened(*([chunk(word)] for word in words))
    assert sent.count("word0 ") <= 20, "redrawn while its line was being written, and never again"


def test_an_answer_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08ok"
    assert not set(safe(hostile)) & {"\x1b", "\x07", "\x9b", "\r", "\x08"}
    sent = screened([chunk(hostile), {"type": "error", "code": "x", "message": hostile, "recoverable": True}])
    assert "\x1b]0;" not in sent
    assert "\x1b[2J" not in sent
    assert "\x9b" not in sent
