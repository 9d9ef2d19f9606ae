"""The browser library with a server: few calls, nothing painted too early, and what happens when somebody fails."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from guardrails import keyring
from guardrails.signing import Purpose, SigningKey, Type, sign
from project.client_library import CLIENT, PARTS, TABLE, built
from tests.client.pages import Call, Pages, Reply
from tests.client.streams import HERON, ROOT_X, SSN, Streams, policy
from tests.e2e.server import wait_for
from tests.guardrails.test_bundle import ACTIVATION, ACTIVATION_PEM, Case, forged, key, with_mac

DRIVER = Path(__file__).with_name("driver.js").read_text("utf-8")
LIBRARY = "/static/client/sluicegate.js"
TEXT = "The number is 123-45-6789, thank you. ".ljust(600, ".")
CHUNKS = [TEXT[at : at + 30] for at in range(0, 600, 30)]
CLEAN = TEXT.replace("123-45-6789", "[SSN]")
DOWN: Any = None
DAY_S = 86_400


@pytest.fixture
def streams(pages: Pages) -> Iterator[Streams]:
    server = Streams(policy(SSN, HERON))
    pages.answer = server.answer
    return server  # type: ignore[return-value]


def drive(tab: Page, *, options: dict[str, object] | None = None, **given: object) -> dict[str, Any]:
    settings = {"root": ROOT_X, "policy": "t", "patienceMs": 60_000, "rulesMs": 30_000, "limitMs": 20_000}
    settings |= options or {}
    call = {"library": LIBRARY, "options": settings, "about": {}, "chunks": CHUNKS, **given}
    said: dict[str, Any] = tab.evaluate(DRIVER, call)
    return said


def applied(tab: Page, streams: Streams, count: int) -> None:
    """Wait until the first session has taken ``count`` deltas."""

    def there() -> bool:
        tab.evaluate("1")  # the page goes on meanwhile
        return "session-1" in streams.sessions and len(streams.sessions["session-1"].deltas) >= count

    wait_for(f"{count} deltas are applied", there)


def streamed(pages: Pages) -> list[Call]:
    return [call for call in pages.calls if call.path.startswith("/v1/stream/")]


def test_it_works(tab: Page, streams: Streams, pages: Pages) -> None:
    said = drive(tab)
    assert (said["visible"], said["state"], said["mode"]) == (CLEAN, "done", "local")
    assert said["rules"] == {"version": 7, "serial": 9}
    assert "".join(streams.sessions["session-1"].deltas) == TEXT
    assert streams.sessions["session-1"].over
    assert [one["by"] for one in said["findings"]] == ["client", "server"]


def test_what_a_page_loads_is_less_than_ten_thousand_bytes(tab: Page, streams: Streams, pages: Pages) -> None:
    drive(tab)
    sizes = {path: len(gzip.compress((CLIENT / Path(path).name).read_bytes(), 9)) for path in set(pages.loaded)}
    table = sizes.pop(f"/static/client/{TABLE}")  # data, whose digest is in the signed rules
    assert set(sizes) == {"/static/client/sluicegate.js", "/static/client/worker.js"}
    assert sum(sizes.values()) < 10_000, sizes
    assert table < 30_000


@pytest.mark.parametrize("name", PARTS)
def test_what_is_served_is_what_the_sources_give(name: str) -> None:
    assert (CLIENT / name).read_text("utf-8") == built(name), "run `make client`"


def test_served_folding_table_is_the_servers() -> None:
    assert (CLIENT / TABLE).read_bytes() == (CLIENT.parents[1] / "guardrails" / "patterns" / TABLE).read_bytes()


def test_six_hundred_characters_take_three_calls_with_rules_and_six_without(
    tab: Page, streams: Streams, pages: Pages
) -> None:
    said = drive(tab, pauseMs=60)
    assert said["calls"] == len(streamed(pages)) <= 3
    tab.reload()
    pages.calls.clear()
    said = drive(tab, options={"root": ""}, pauseMs=60)
    assert (said["visible"], said["mode"]) == (CLEAN, "server")
    assert said["calls"] == len(streamed(pages)) <= 6


BEGINS = """async ([library, options]) => {
  const { Sluicegate } = await import(library);
  window.gate = new Sluicegate({ url: location.origin, key: "k", ...options });
  window.answer = gate.answer();
}"""


@pytest.fixture
def slow(streams: Streams, pages: Pages) -> Iterator[threading.Event]:
    """Whoever asks for rules waits until this is set."""
    there = threading.Event()

    def answer(call: Call) -> Reply | None:
        if call.path.startswith("/v1/rules"):
            assert there.wait(120)
        return streams.answer(call)

    pages.answer = answer
    yield there
    there.set()


def test_text_waits_two_tenths_of_a_second_for_rules_that_load_slowly(
    tab: Page, streams: Streams, pages: Pages, slow: threading.Event
) -> None:
    tab.clock.install()
    tab.clock.pause_at(datetime.now(UTC) + timedelta(seconds=30))
    tab.evaluate(BEGINS, [LIBRARY, {"root": ROOT_X, "policy": "t"}])
    tab.clock.run_for(5_000)  # the time before there is text does not count
    tab.evaluate("(text) => answer.feed(text)", TEXT)
    tab.clock.run_for(190)
    assert (streamed(pages), tab.evaluate("() => answer.visible")) == ([], "")
    tab.clock.run_for(20)
    tab.wait_for_function("() => answer.visible", polling=50)
    assert [(call.path, call.body["delta"]) for call in streamed(pages)] == [("/v1/stream/start", TEXT)]
    assert not slow.is_set()
    tab.clock.resume()
    said = tab.evaluate("async () => { await answer.finish(); return [answer.visible, answer.state, answer.mode]; }")
    assert said == [CLEAN, "done", "server"]
    slow.set()
    tab.evaluate("() => gate.ready")
    assert (drive(tab)["mode"], len(streams.sessions)) == ("local", 2)  # by the next answer they are there


def test_answer_that_begins_while_rules_load_runs_them_when_they_come_before_its_text(
    tab: Page, streams: Streams, slow: threading.Event
) -> None:
    tab.clock.install()
    tab.clock.pause_at(datetime.now(UTC) + timedelta(seconds=30))
    tab.evaluate(BEGINS, [LIBRARY, {"root": ROOT_X, "policy": "t"}])
    tab.clock.run_for(5_000)
    slow.set()
    tab.evaluate("() => gate.ready")
    tab.clock.resume()
    said = tab.evaluate(
        "async (text) => { answer.feed(text); await answer.finish(); return [answer.visible, answer.mode]; }", TEXT
    )
    assert said == [CLEAN, "local"]


@pytest.mark.parametrize("root", [ROOT_X, ""], ids=["local", "server"])
def test_nothing_is_painted_that_the_final_text_does_not_have(tab: Page, streams: Streams, root: str) -> None:
    said = drive(tab, options={"root": root}, chunks=list(TEXT))
    assert said["visible"] == CLEAN
    assert all(CLEAN.startswith(painted) for painted, _, _ in said["painted"])
    assert "".join(text for _, _, text in said["painted"]) == CLEAN


@pytest.mark.parametrize("cumulative", [True, False], ids=["watched", "fed"])
@pytest.mark.parametrize("root", [ROOT_X, ""], ids=["local", "server"])
def test_pairs_are_never_split_however_the_text_is_cut(
    tab: Page, streams: Streams, root: str, cumulative: bool
) -> None:
    chunks = tab.evaluate("() => ['🙂', '🙂'].join('').split('')")  # lone surrogates do not survive the way here
    assert len(chunks) == 4
    tab.evaluate("() => { window.halves = '🙂 1🙂'.split(''); }")
    script = DRIVER.replace("for (const chunk of chunks)", "for (const chunk of window.halves)")
    options = {"root": root, "policy": "t", "rulesMs": 30_000, "limitMs": 20_000}
    call = {"library": LIBRARY, "options": options, "about": {}, "chunks": [], "cumulative": cumulative}
    said = tab.evaluate(script, call)
    assert (said["visible"], said["state"], said["rewritten"]) == ("🙂 1🙂", "done", 0)
    assert "".join(streams.sessions["session-1"].deltas) == "🙂 1🙂"
    assert all("\ufffd" not in painted for painted, _, _ in said["painted"])


def test_text_that_was_taken_and_is_another_now_is_told(tab: Page, streams: Streams) -> None:
    """Half a pair that became another character, and a text that is rewritten: neither goes on from what was taken."""
    said = tab.evaluate(
        """async ([library, options]) => {
          const { Sluicegate } = await import(library);
          const gate = new Sluicegate({ url: location.origin, key: "k", ...options });
          const said = [];
          for (const [one, two] of [
            ["A\ud83d", "A!"], ["A\ud83d", "B\ud83d\ude42"], ["A\ud83d", "A"],
            ["A\ud83d", "A\ud83d"], ["\0\ude42A\ud83d", "\0\ude42A\ud83d\ude42"],
          ]) {
            const answer = gate.answer();
            said.push([answer.update(one), answer.update(two)]);
            await answer.finish();
          }
          return said;
        }""",
        [LIBRARY, {"root": "", "policy": "t"}],
    )
    assert said == [[True, False], [True, False], [True, False], [True, True], [True, True]]
    assert streams.sessions["session-5"].deltas[0] == "\ufffd\ufffdA🙂"


def test_block_ends_the_painting_and_the_message_for_it_is_never_checked(
    tab: Page, streams: Streams, pages: Pages
) -> None:
    said = drive(
        tab, chunks=["All of ", "project blue", " heron is secret", " and more"], about={"notice": "[Stopped.]"}
    )
    assert (said["visible"], said["state"], said["reason"]["code"]) == ("All of ", "blocked", "blocked")
    assert "".join(streams.sessions["session-1"].deltas).startswith("All of project blue heron is secret")
    assert streams.sessions["session-1"].over
    pages.calls.clear()
    said = drive(tab, chunks=["[Stopped.]"], cumulative=True)
    assert (said["visible"], said["state"], streamed(pages)) == ("[Stopped.]", "done", [])


@pytest.mark.parametrize("cumulative", [True, False], ids=["watched", "fed"])
@pytest.mark.parametrize("pieces", [["[Stopped.]"], list("\n[Stopped.] ")], ids=["whole", "in pieces"])
def test_message_of_a_block_is_known_after_a_reload_and_in_pieces(
    tab: Page, streams: Streams, pages: Pages, pieces: list[str], cumulative: bool
) -> None:
    said = drive(tab, chunks=["All of project blue heron"], about={"notice": "[Stopped.]"})
    assert said["state"] == "blocked"
    tab.reload()
    pages.calls.clear()
    said = drive(tab, chunks=pieces, cumulative=cumulative)  # by an answer with another message of its own
    assert (said["visible"].strip(), said["state"], streamed(pages)) == ("[Stopped.]", "done", [])


@pytest.mark.parametrize("cumulative", [True, False], ids=["watched", "fed"])
@pytest.mark.parametrize("rest", ["", " here: 123-45-6789"], ids=["ends there", "goes on"])
def test_text_that_only_begins_like_our_message_is_checked_whole(
    tab: Page, streams: Streams, rest: str, cumulative: bool
) -> None:
    text = f" [Stopped{rest}"
    said = drive(tab, chunks=list(text), about={"notice": "[Stopped.]"}, cumulative=cumulative)
    assert (said["visible"], said["state"]) == (text.replace("123-45-6789", "[SSN]"), "done")
    assert "".join(streams.sessions["session-1"].deltas) == text


def fail_stream(times: int, reply: Reply | None) -> Any:
    left = [times]

    def fails(call: Call) -> Reply | bool | None:
        if call.path.startswith("/v1/stream/") and left[0] > 0:
            left[0] -= 1
            return reply
        return False

    return fails


@pytest.mark.parametrize(
    "reply",
    [None, (503, {"error": {"code": "unavailable", "message": "Soon."}}, {}), (429, {"error": {"code": "too_many_calls",
     "message": "Slowly."}}, {"Retry-After": "1"})],
    ids=["cut", "503", "429"],
)  # fmt: skip
def test_calls_without_an_answer_are_sent_again_the_same(
    tab: Page, streams: Streams, pages: Pages, reply: Reply | None
) -> None:
    streams.fails = fail_stream(
        3 if reply is None else 1, reply
    )  # Chromium tries a connection that was cut again itself
    said = drive(tab, options={"patienceMs": 60_000})
    assert (said["visible"], said["state"]) == (CLEAN, "done")
    assert said["retries"] >= 1
    first, second = streamed(pages)[:2]
    assert first.body == second.body
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert len(streams.sessions) == 1


def test_answer_that_was_lost_on_its_way_is_asked_for_again(tab: Page, streams: Streams, pages: Pages) -> None:
    lost: list[Call] = []

    def fails(call: Call) -> Reply | bool | None:
        if call.path == "/v1/stream/start" and not lost:
            lost.append(call)
            streams._start(call)
            return None
        return False

    streams.fails = fails
    said = drive(tab, options={"root": "", "patienceMs": 30_000})
    assert (said["visible"], said["state"], len(streams.sessions)) == (CLEAN, "done", 1)


def test_server_that_lost_its_newest_state_is_told_again(tab: Page, streams: Streams, pages: Pages) -> None:
    drive(tab, options={"root": ""}, chunks=CHUNKS[:12], pauseMs=150, finish=False)
    applied(tab, streams, 2)
    streams.forget("session-1", 1)
    said = tab.evaluate("""async (rest) => { for (const one of rest) answer.feed(one); await answer.finish();
        return { visible: answer.visible, state: answer.state }; }""", CHUNKS[12:])  # fmt: skip
    assert said == {"visible": CLEAN, "state": "done"}
    assert "".join(streams.sessions["session-1"].deltas) == TEXT


def test_reload_while_an_answer_was_on_its_way_loses_none_of_it(tab: Page, streams: Streams, pages: Pages) -> None:
    def fails(call: Call) -> Reply | bool | None:
        if call.path != "/v1/stream/update":
            return False
        streams._more(call, last=False)  # applied, and the answer never comes
        return None

    about = {"resume": "answer-1"}
    drive(tab, options={"root": ""}, about=about, chunks=["My number", " is 123-45-6789."], finish=False)
    applied(tab, streams, 1)  # so that what follows is a delta of its own
    streams.fails = fails
    tab.evaluate("() => answer.feed(' Thanks. ')")
    applied(tab, streams, 2)
    tab.reload()
    streams.fails = lambda call: False
    text = "My number is 123-45-6789. Thanks. Bye."
    said = drive(tab, options={"root": ""}, about=about, chunks=[text], cumulative=True)
    assert (said["visible"], said["state"]) == ("My number is [SSN]. Thanks. Bye.", "done")


def test_session_that_is_over_after_a_reload_is_begun_anew(tab: Page, streams: Streams, pages: Pages) -> None:
    about = {"resume": "answer-1"}
    drive(tab, about=about, chunks=CHUNKS[:12], finish=False)
    tab.wait_for_function("() => answer.session")
    streams.sessions["session-1"].over = True
    tab.reload()
    said = drive(tab, about=about, chunks=CHUNKS, cumulative=True)
    assert (said["visible"], said["state"]) == (CLEAN, "done")
    assert "".join(streams.sessions["session-2"].deltas) == TEXT


def test_start_that_is_still_under_way_is_waited_for(tab: Page, streams: Streams) -> None:
    busy = {"error": {"code": "seq_conflict", "message": "It is being started.", "expected_seq": 1}}
    streams.fails = fail_stream(1, (409, busy, {}))
    assert drive(tab)["state"] == "done"


def test_reload_goes_on_in_the_same_session(tab: Page, streams: Streams, pages: Pages) -> None:
    about = {"resume": "answer-1"}
    drive(tab, about=about, chunks=CHUNKS[:12], finish=False)
    tab.wait_for_function("() => answer.session")
    sent = "".join(streams.sessions["session-1"].deltas)
    tab.reload()
    said = drive(tab, about=about, chunks=CHUNKS, cumulative=True)
    assert said["taken"] == TEXT
    assert (said["visible"], said["state"], len(streams.sessions)) == (CLEAN, "done", 1)
    assert "".join(streams.sessions["session-1"].deltas) == TEXT
    assert TEXT.startswith(sent)


def down(call: Call) -> Reply | bool | None:
    return None


@pytest.mark.parametrize(
    ("fail", "state", "visible"), [("closed", "closed", ""), ("open", "open", TEXT)], ids=["closed", "open"]
)
def test_server_that_is_down_from_the_start(tab: Page, streams: Streams, fail: str, state: str, visible: str) -> None:
    streams.fails = down
    said = drive(tab, options={"fail": fail, "patienceMs": 1_500})
    assert (said["state"], said["visible"], said["reason"]["code"]) == (state, visible, "unreachable")
    assert said["states"][-1] == f"{state}/server"
    assert said["refused"] == "unreachable"


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_server_that_goes_down_while_rules_run_here(tab: Page, streams: Streams, fail: str) -> None:
    streams.fails = lambda call: None if call.path.startswith("/v1/stream/") else False
    said = drive(tab, options={"fail": fail}, later={"patienceMs": 1_500})
    assert (said["state"], said["mode"]) == (fail, "local")
    assert "123-45" not in str(said["painted"])
    if fail == "open":
        assert said["visible"] == CLEAN


HANGING = """
const plain = onmessage;
onmessage = (event) => {
  while (event.data.does === "feed");
  plain(event);
};
"""


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_worker_that_hangs_is_ended_and_the_setting_obeyed(tab: Page, streams: Streams, fail: str) -> None:
    body = (CLIENT / "worker.js").read_text("utf-8") + HANGING
    tab.route("**/worker.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))
    said = drive(tab, options={"fail": fail, "limitMs": 700})
    assert (said["state"], said["reason"]["code"]) == (fail, "worker_timeout")
    assert said["visible"] == ("" if fail == "closed" else CLEAN)  # open: the server still answers
    assert said["rules"] is None
    wait_for("the worker has ended", lambda: tab.evaluate("1") and not tab.workers)


def test_other_rules_than_the_servers_hand_over_to_its_word(tab: Page, streams: Streams) -> None:
    drive(tab)
    streams.policy = policy(SSN, HERON, {"kind": "keywords", "action": "redact", "keywords": ["thank"]}, version=8)
    said = drive(tab)
    assert (said["state"], said["mode"], said["reason"]["code"]) == ("done", "server", "other_version")
    assert said["visible"] == CLEAN.replace("thank", "[REDACTED]")


def test_roll_back_is_followed_within_one_refresh_and_its_replay_refused(tab: Page, streams: Streams) -> None:
    assert drive(tab)["rules"] == {"version": 7, "serial": 9}
    seven = streams.policy
    streams.policy, streams.serial = policy(SSN, version=6), 10
    streams.__post_init__()
    assert drive(tab, again=True)["rules"] == {"version": 6, "serial": 10}
    streams.policy, streams.serial = seven, 9
    streams.__post_init__()
    said = drive(tab, again=True)
    assert (said["rules"], said["refused"]) == ({"version": 6, "serial": 10}, "replayed")
    tab.reload()  # what was seen outlives the page
    said = drive(tab)
    assert (said["rules"], said["refused"], said["mode"], said["state"]) == (None, "replayed", "server", "done")


def test_roll_back_is_followed_by_itself_once_the_rules_are_of_age(tab: Page, streams: Streams) -> None:
    assert drive(tab, options={"refreshMs": 0})["rules"] == {"version": 7, "serial": 9}
    streams.policy, streams.serial = policy(SSN, version=6), 10
    streams.__post_init__()
    said = drive(tab)  # the first answer already: nobody told the client to ask
    assert said["rules"] == {"version": 6, "serial": 10}
    assert (said["mode"], said["state"], said["visible"]) == ("local", "done", CLEAN)


def test_server_whose_statement_has_lapsed_guards_by_itself(tab: Page, streams: Streams) -> None:
    streams.age_s = 2 * DAY_S
    said = drive(tab)
    assert (said["rules"], said["refused"], said["mode"]) == (None, "expired", "server")
    assert (said["state"], said["visible"]) == ("done", CLEAN)


def test_rules_that_lapse_while_the_server_has_no_others_are_not_run(tab: Page, streams: Streams) -> None:
    assert drive(tab)["mode"] == "local"
    streams.fails = lambda call: False if call.path.startswith("/v1/stream/") else None
    ask = """async () => {
      gate.options.patienceMs = 1_500;
      await gate.refresh();
      gate.options.patienceMs = 60_000;
    }"""
    tab.evaluate(ask)
    said = drive(tab)  # the control: as long as they hold they are run
    assert (said["rules"], said["refused"], said["mode"]) == ({"version": 7, "serial": 9}, "unreachable", "local")
    tab.evaluate("(ms) => { const now = Date.now; Date.now = () => now() + ms; }", 2_000 * DAY_S)
    tab.evaluate(ask)
    said = drive(tab)
    assert (said["rules"], said["refused"], said["mode"]) == (None, "unreachable", "server")
    assert (said["state"], said["visible"]) == ("done", CLEAN)


@pytest.mark.parametrize("rules", ["unchanged", "unavailable", "served"])
def test_rules_of_a_key_that_was_revoked_go_with_the_next_refresh(tab: Page, streams: Streams, rules: str) -> None:
    """Also where the server has no other rules to hand out: what is run is verified anew with the keys as they are."""
    assert drive(tab)["mode"] == "local"
    unavailable: Reply = (409, {"error": {"code": "no_client_rules", "message": "There are none."}}, {})
    instead: dict[str, Reply] = {"unchanged": (304, {}, {}), "unavailable": unavailable}
    streams.fails = lambda call: instead.get(rules, False) if call.path.startswith("/v1/rules") else False
    said = drive(tab, again=True)  # the control: nothing was revoked
    assert said["rules"] == {"version": 7, "serial": 9}
    streams.keys_serial, streams.revoked = 2, (ACTIVATION.public.kid,)
    said = drive(tab, again=True)
    assert (said["rules"], said["mode"], said["visible"]) == (None, "server", CLEAN)
    streams.keys_serial, streams.revoked = 1, ()  # who serves the keys leaves it out
    streams.fails = lambda call: False
    said = drive(tab, again=True)
    assert (said["rules"], said["refused"], said["visible"]) == (None, "replayed", CLEAN)


def test_page_without_a_store_refuses_what_it_has_seen_replayed(tab: Page, streams: Streams) -> None:
    assert drive(tab, options={"store": None})["rules"] == {"version": 7, "serial": 9}
    streams.serial = 8
    said = drive(tab, again=True)
    assert (said["rules"], said["refused"]) == ({"version": 7, "serial": 9}, "replayed")


def tampered(bundle: str) -> str:
    header, payload, signature = bundle.split(".")
    at = len(payload) // 2
    return f"{header}.{payload[:at]}{'A' if payload[at] != 'A' else 'B'}{payload[at + 1 :]}.{signature}"


def signed_by(other: SigningKey, bundle: str) -> str:
    return sign(base64.urlsafe_b64decode(bundle.split(".")[1] + "=="), other, Type.BUNDLE)


NEW = key(Purpose.ACTIVATION)
SERVED: dict[str, tuple[Callable[[str], str], str, str]] = {
    "tampered": (tampered, "signature", "The signature does not fit."),
    "another key": (lambda bundle: signed_by(NEW, bundle), "unknown_key", "Its key is not trusted."),
    "unvouched": (lambda bundle: signed_by(NEW, bundle), "unvouched_key", "Its key is not vouched for."),
    "none": (lambda bundle: forged(bundle, ACTIVATION_PEM, alg="none"), "algorithm", "Its algorithm is not Ed25519."),
    "mac": (lambda bundle: with_mac(bundle, ACTIVATION.public.x), "algorithm", "Its algorithm is not Ed25519."),
    "jku": (lambda bundle: forged(bundle, ACTIVATION_PEM, jku="/keys"), "header", "Its header holds more."),
}


@pytest.mark.parametrize("how", SERVED)
def test_served_bundle_that_is_not_believed_is_not_run_and_the_reason_said(
    tab: Page, streams: Streams, pages: Pages, how: str
) -> None:
    change, reason, words = SERVED[how]
    listed = (keyring.entry(NEW.public),) if how == "unvouched" else ()

    def fails(call: Call) -> Reply | bool | None:
        if call.path.startswith("/v1/rules"):
            return 200, {"bundle": change(streams.bundle())}, {"ETag": '"1"'}
        if call.path == "/.well-known/jwks.json":
            return 200, Case().keys(*listed), {}
        return False

    streams.fails = fails
    said = drive(tab)
    assert (said["rules"], said["refused"], said["mode"], said["state"]) == (None, reason, "server", "done")
    assert tab.evaluate("() => gate.refused.message") == words
    assert (said["visible"], [one["by"] for one in said["findings"]]) == (CLEAN, ["server"])
    assert tab.workers == []
    asked = {call.path.partition("?")[0] for call in pages.calls if not call.path.startswith("/v1/stream/")}
    assert asked == {"/v1/rules", "/.well-known/jwks.json"}  # and nothing that a header points to


def test_rules_that_find_other_spans_here_than_signed_are_not_run(tab: Page, streams: Streams) -> None:
    guardrails: Any = streams.rules["guardrails"]
    guardrails[0]["rules"][0]["vectors"][0]["spans"] = [[0, 1]]
    said = drive(tab)
    assert (said["rules"], said["refused"], said["mode"], said["visible"]) == (None, "parity", "server", CLEAN)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pattern": "a+"}, "pattern"),
        ({"pattern": "(?:[a]{1,200}){1,400}"}, "pattern"),
        ({"validators": [{"name": "made_up"}]}, "pattern"),
    ],
    ids=["dialect", "too-large", "unknown-check"],
)
def test_rules_that_cannot_be_run_here_are_refused_by_name(
    tab: Page, streams: Streams, change: dict[str, object], code: str
) -> None:
    guardrails: Any = streams.rules["guardrails"]
    guardrails[0]["rules"][0] |= change
    said = drive(tab)
    assert (said["rules"], said["refused"], said["visible"]) == (None, code, CLEAN)


def test_another_folding_table_than_the_signed_one_is_refused(tab: Page, streams: Streams) -> None:
    streams.rules = json.loads(json.dumps({**streams.rules, "folding": {"version": 1, "digest": "sha256:0"}}))
    assert drive(tab)["refused"] == "folding"


@pytest.mark.parametrize("pattern", ["THE number", "number is é?"], ids=["as it is", "not ASCII"])
def test_rules_that_read_the_text_unfolded_are_believed_and_run(tab: Page, streams: Streams, pattern: str) -> None:
    rule = {"id": "r", "pattern": pattern, "fold": False, "must_match": [pattern.replace("é?", "é")]}
    plain = {"name": "plain", "kind": "regex", "client": True, "config": {"rules": [rule]}}
    streams.policy = policy(SSN, plain)
    streams.__post_init__()
    said = drive(tab, chunks=["THE num", "ber is é, the number ", "is not."])
    assert (said["refused"], said["mode"], said["state"]) == ("", "local", "done")
    gone = "THE number" if pattern.isascii() else "number is é"
    assert said["visible"].startswith("THE number is é,".replace(gone, "[REDACTED]"))
    assert said["findings"][0]["by"] == "client"


def test_rules_that_do_not_cover_the_policy_paint_nothing_by_themselves(tab: Page, pages: Pages) -> None:
    server = Streams(policy(SSN, {"kind": "keywords", "action": "redact", "keywords": ["thank"]}))
    pages.answer = server.answer
    said = drive(tab)
    assert (said["mode"], said["refused"], said["rules"]) == ("server", "", {"version": 7, "serial": 9})
    assert said["visible"] == CLEAN.replace("thank", "[REDACTED]")
