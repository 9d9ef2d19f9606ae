"""What reaches the page as HTML: exactly the released text, addressed, escaped, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from django.template.loader import render_to_string

from guardrails.findings import Action, Finding, Mode
from streaming.core import events
from streaming.fragments import FragmentContext, render
from streaming.listing import SHOWN
from streaming.page import Lane, Row
from streaming.presentation import StatusView, dom_id, hold_note, milliseconds, pieces
from streaming.timeline import TimelineView

CONTEXT = FragmentContext(conversation_id="c-1")
HOSTILE = "</pre></div><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\u200bgnihton &amp; \"a\" 'b'"
POLICY: events.PolicyRef = {"name": "demo", "version": 3, "digest": "sha256:00"}


class Reader(HTMLParser):
    """Reads a fragment as a browser does: tags, attributes and text by the element that is swapped."""

    VOID = frozenset({"input", "img", "br"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.swaps: dict[str, str] = {}
        self._open: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        swap = attributes.get("hx-swap-oob")
        key = None
        if swap:
            key = swap.partition(":")[2].lstrip("#") or attributes.get("id")
            assert key, f"<{tag}> is swapped nowhere"
            self.swaps.setdefault(key, "")
        if tag not in self.VOID:
            self._open.append(key)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        key = next((key for key in reversed(self._open) if key), None)
        if key is not None:
            self.swaps[key] += data


class Cells(Reader):
    """Reads a table: the text of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def lane_of(status: StatusView) -> Cells:
    """The lane of one guardrail, as the page is served with it."""
    row = Row(status.guardrail, "blocks", status)
    cells = Cells()
    cells.feed(render_to_string("streaming/panel.html#lanes", {"lanes": [Lane("DEFERRED", "later", [row])]}))
    cells.close()
    assert len(cells.cells) == 10, "a head and a row of five"
    return cells


def read(event: events.ServerEvent, seq: int = 7) -> Reader:
    reader = Reader()
    reader.feed(render(events.stamp(event.payload(), seq=seq, session_id="s1", ms=40), context=CONTEXT))
    reader.close()
    assert not reader._open
    return reader


def stream(chunk: str, channel: str = "text", choice: int = 0) -> Reader:
    return read(events.MessageStream("a1", channel, choice, chunk))


def test_it_works() -> None:
    assert stream("Hello ").swaps["m-a1-text"] == "Hello "


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "</div><b hx-get=/x>",
        " \n  two  spaces\n",
        "a\r\nb\rc",
        "&amp; &lt; &#13;",
        "ß İ \u212a \u200b \u2028",
        "\u0085 \u0001",
        "\"quoted\" & 'single'",
    ],
)
def test_any_text_of_a_model_reads_back_character_by_character(text: str) -> None:
    reader = stream(text)
    # An HTML parser of the standard library keeps bare carriage returns; a browser does not, so they must be spelled.
    html = render(events.MessageStream("a1", "text", 0, text).payload(), context=CONTEXT)
    assert "\r" not in html
    assert reader.swaps["m-a1-text"] == text
    assert {tag for tag, _ in reader.tags} == {"i", "div"}


def test_every_fragment_begins_with_its_cursor() -> None:
    tag, attributes = stream("x").tags[0]
    assert tag == "i"
    assert attributes["id"] == "cursor"
    assert (attributes["data-seq"], attributes["data-session"]) == ("7", "s1")
    assert attributes["data-target"] == "m-a1"


def test_a_forged_cursor_inside_text_stays_text() -> None:
    html = render(events.MessageStream("a1", "text", 0, '<i id="cursor" data-seq="999">').payload(), context=CONTEXT)
    assert len(re.findall(r"<i id=\"cursor\"", html)) == 1


def test_a_hold_shows_its_length_and_reason_and_no_character_of_it() -> None:
    reader = read(events.Hold("a1", "text", 7, "pii", "email"))
    assert reader.swaps["m-a1-hold"] == "\xa0" * 7
    assert reader.swaps["m-a1-note"] == "holding 7 characters: may be an e-mail address"


def test_a_hold_of_a_whole_answer_is_a_small_frame_that_says_its_number() -> None:
    hold = events.Hold("a1", "text", 200_000, "harm", "")
    assert len(render(hold.payload(), context=CONTEXT)) < 5_000
    assert "200,000 characters" in read(hold).swaps["m-a1-note"]


def test_the_end_of_a_hold_clears_the_shimmer() -> None:
    reader = read(events.Hold("a1", "text", 0, "", ""))
    assert reader.swaps["m-a1-hold"] == ""
    assert reader.swaps["m-a1-note"] == "nothing held"


def test_a_redaction_is_a_chip_whose_text_is_the_placeholder() -> None:
    reader = read(events.Redaction("a1", "text", 12, "[SSN]"))
    assert reader.swaps["m-a1-text"] == "[SSN]"
    assert ("mark", "") in [(tag, attributes.get("data-chip") or "") for tag, attributes in reader.tags]


def test_thinking_goes_to_its_own_place() -> None:
    assert stream("hm", channel="thinking").swaps["m-a1-thinking"] == "hm"


def test_a_second_choice_is_not_mixed_into_the_first() -> None:
    assert "m-a1-text" not in stream("other", choice=1).swaps


def test_a_block_names_reason_and_count() -> None:
    said = read(events.Blocked("a1", "It names <an> internal project.", "codenames", 18)).swaps["m-a1-extras"]
    assert "It names <an> internal project." in said
    assert re.search(r"codenames.*18 characters withheld", said)


def test_an_error_without_a_session_is_still_shown() -> None:
    html = render(
        {"type": "error", "code": "invalid", "message": "prompt is empty", "recoverable": True, "field": "prompt"},
        context=CONTEXT,
    )
    reader = Reader()
    reader.feed(html)
    assert "prompt is empty" in reader.swaps["notices"]
    assert "field prompt" in reader.swaps["notices"]


def test_a_status_reaches_state_and_times_with_units() -> None:
    swaps = read(events.GuardrailStatus("harm", "DEFERRED", "would_block", 1840.0, 2210.5)).swaps
    assert "would block" in swaps["g-harm-state"]
    assert (swaps["g-harm-last"], swaps["g-harm-p95"]) == ("1.8 s", "2.2 s")


def test_a_waiting_check_says_what_it_waits_for() -> None:
    waiting = events.GuardrailStatus("harm", "DEFERRED", "waiting", error="No worker is running.")
    assert "waiting" in read(waiting).swaps["g-harm-state"]
    assert "No worker is running." in read(waiting).swaps["g-harm-state"]


def test_a_new_answer_starts_the_run_and_names_its_conversation() -> None:
    reader = read(events.MessageNew("a1", "c-9", "assistant", "scripted", "scripted-1", POLICY))
    attributes = {a["id"]: a for _, a in reader.tags if a.get("id")}
    assert attributes["run"]["data-run"] == "streaming"
    assert attributes["conversation-id"]["value"] == "c-9"
    assert attributes["m-a1"]["data-session"] == "s1"
    assert attributes["m-a1-text"] == {"class": "text", "id": "m-a1-text", "data-visible": None}


def test_a_prompt_appears_with_the_text_that_was_stored() -> None:
    read(events.MessageNew("u1", "c-9", "user", "", "", POLICY))
    update = events.MessageUpdate("u1", "my number is [SSN]", {"redactions": [[13, "[SSN]"]]})
    assert read(update).swaps["m-u1-text"] == "my number is [SSN]"


def test_an_unknown_event_of_a_newer_worker_is_its_cursor_alone() -> None:
    html = render({"type": "surprise", "seq": 3, "session_id": "s1"}, context=CONTEXT)
    reader = Reader()
    reader.feed(html)
    assert list(reader.swaps) == ["cursor"]


@pytest.mark.parametrize("name", ["a b", "é", 'x"y', "a--b", "a.b"])
def test_an_odd_guardrail_name_is_a_plain_id_and_stays_unique(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", dom_id("g", name))
    assert dom_id("g", name) != dom_id("g", name + "x")


def test_a_literal_placeholder_of_the_model_is_no_chip() -> None:
    text = "[SSN] is a label; [SSN]"
    assert [(p.text, p.chip) for p in pieces(text, [[18, "[SSN]"]])] == [("[SSN] is a label; ", False), ("[SSN]", True)]


def test_of_many_findings_the_first_are_listed_and_each_other_one_adds_to_a_number() -> None:
    """Else a running answer would be a page of ten thousand items, which it is not when it is loaded again."""
    found = Finding("pii", "pii", "email", "email", 3, 9, Mode.BLOCK, Action.REDACT)
    block = replace(found, guardrail="codenames", action=Action.BLOCK)
    watched = replace(block, guardrail="watched", mode=Mode.MONITOR)
    told = [(found, SHOWN), (found, SHOWN + 1), (block, SHOWN + 2), (watched, SHOWN + 3)]
    drawn = [read(events.FindingEvent(replace(one, n=n))) for one, n in told]
    items = [next(about for tag, about in one.tags if tag == "li") for one in drawn]
    assert [about.get("data-n") for about in items] == [str(SHOWN), None, str(SHOWN + 2), None]
    counted = [(about["data-more-of"], about["data-more"]) for about in items if "data-more" in about]
    assert counted == [("pii", "1"), ("watched", "1")]
    assert drawn[1].swaps["s-s1-findings"].split() == ["pii", "and", "1", "more"]


def test_redactions_that_do_not_fit_the_text_lose_no_character() -> None:
    text = "plain text"
    for odd in ([[2, "[X]"]], [["a", "b"]], None, "x", [[0, "plain"], [3, "in text"]], [[-1, "t"]]):
        assert "".join(piece.text for piece in pieces(text, odd)) == text


def test_the_timeline_draws_every_arrival_and_what_was_held_between() -> None:
    view = TimelineView.of({"arrivals": [[0, 4], [20, 4], [40, 4]], "releases": [[0, 4], [40, 8]], "naive_calls": 3})
    assert (len(view.arrivals), len(view.releases)) == (3, 2)
    assert view.longest_hold == "4 characters"
    assert view.total == "40 ms"
    # Nothing is held until the second arrival; at the last release, at most 4 characters less are held than arrived.
    assert view.held.startswith("500,50,500,38,1000,38,")
    assert view.held.endswith(",500,50")
    assert view.arrivals_path.count("M") == 3


def test_the_drawing_of_a_long_answer_is_small_and_hides_no_peak() -> None:
    """What falls on one column is one mark: the highest, wherever in the column it stands."""
    arrivals = [[ms, 400 if ms == 7_003 else 1] for ms in range(0, 20_000, 10)] + [[7_003, 400]]
    releases = [[ms + 5, 1] for ms in range(0, 20_000, 10)]
    view = TimelineView.of({"arrivals": sorted(arrivals), "releases": releases})
    assert len(view.arrivals) <= TimelineView.WIDTH / TimelineView.COLUMN + 1
    assert max(mark.height for mark in view.arrivals) == TimelineView.REACH
    (peak,) = [mark.x for mark in view.arrivals if mark.height == TimelineView.REACH]
    assert abs(peak - 1000 * 7_003 / 19_995) <= TimelineView.COLUMN
    assert len(read(events.Timing(arrivals, releases)).swaps["timeline"]) > 0
    drawn = render({**events.Timing(arrivals, releases).payload(), "seq": 1}, context=FragmentContext())
    assert len(drawn) < 60_000


def test_a_timeline_without_events_is_empty_and_does_not_divide_by_zero() -> None:
    assert TimelineView.of({"arrivals": [], "releases": []}).empty
    assert "Timeline" in read(events.Timing([], [])).swaps["timeline"]


def test_numbers_stand_with_their_units() -> None:
    assert [milliseconds(v) for v in (None, 0.02, 3.14, 250, 1500, 12000)] == [
        "–", "20 µs", "3.1 ms", "250 ms", "1.5 s", "12 s"]  # fmt: skip
    assert hold_note(9, "secrets", "aws_access_key_id").endswith("may be a secret (aws access key id)")
    assert hold_note(1, "pii", "ssn_dashed").startswith("holding 1 character: may be a social security number")


def test_every_event_of_a_tool_goes_to_the_card_of_its_session() -> None:
    envelope = {"seq": 1, "session_id": "s1", "ms": 1, "id": "call_1"}
    card = render({**envelope, "type": "tool_call", "name": "f", "arguments": "{}"}, context=CONTEXT)
    assert 'id="t-s1-call_1"' in card
    for event in (
        {"type": "tool_progress", "message": "half", "progress": 0.5},
        {"type": "tool_result", "result": "fine"},
        {"type": "tool_result", "error": "no"},
    ):
        html = render({**envelope, **event}, context=CONTEXT)
        assert 'data-target="t-s1-call_1"' in html
        assert 'id="t-s1-call_1-progress"' in html


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (events.MessageUpdate("u1", HOSTILE, {}), "m-u1-text"),
        (events.ToolCall("call_1", HOSTILE, "{}"), "s-s1-tools"),
        (events.ToolCall("call_1", "f", HOSTILE), "s-s1-tools"),
        (events.ToolProgress("call_1", HOSTILE, 0.5), "t-s1-call_1-progress"),
        (events.ToolResult("call_1", HOSTILE), "t-s1-call_1-result"),
        (events.ToolResult("call_1", error=HOSTILE), "t-s1-call_1-result"),
        (events.ErrorEvent("odd", HOSTILE, recoverable=False), "notices"),
        (events.GuardrailStatus(HOSTILE, "DEFERRED", "error", error=HOSTILE), f"{dom_id('g', HOSTILE)}-state"),
        (events.Blocked("a1", "r", HOSTILE, 3), "m-a1-extras"),
    ],
    ids=["prompt", "tool", "arguments", "progress", "result", "tool error", "error", "status", "blocked by"],
)
def test_what_looks_like_markup_reads_back_character_by_character(event: events.ServerEvent, place: str) -> None:
    reader = read(event)
    assert HOSTILE in reader.swaps[place]
    assert_no_code(reader)


def assert_no_code(reader: Reader) -> None:
    assert not {"script", "img"} & {tag for tag, _ in reader.tags}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]


def test_a_guardrail_named_like_markup_is_a_name_in_its_lane() -> None:
    lane = lane_of(StatusView(HOSTILE, "error", error=HOSTILE))
    assert HOSTILE in lane.cells[5]
    assert HOSTILE in lane.cells[6]
    assert_no_code(lane)
    (row,) = [attributes for tag, attributes in lane.tags if tag == "tr" and attributes]
    assert (row["data-guardrail"], row["id"]) == (HOSTILE, dom_id("g", HOSTILE))
    assert read(events.GuardrailStatus(HOSTILE, "DEFERRED", "hit")).tags[0][1]["data-target"] == row["id"]


STATES = {
    "idle": "○ idle", "waiting": "◌ waiting", "checking": "◐ checking", "passed": "✓ passed", "hit": "● hit",
    "would_block": "▲ would block", "error": "✕ error", "timeout": "✕ timed out", "expired": "✕ expired",
    "circuit_open": "✕ circuit open", "slower_than_declared": "◔ slower than declared",
}  # fmt: skip


def test_every_state_of_a_guardrail_has_its_words() -> None:
    assert set(STATES) == events.STATUS_STATES
    assert len(set(STATES.values())) == 11


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_a_sign_and_a_word_served_and_live(state: str) -> None:
    lane = lane_of(StatusView("g", state))
    assert lane.cells[6].strip() == STATES[state]
    assert read(events.GuardrailStatus("g", "DEFERRED", state)).swaps["g-g-state"] == STATES[state]
