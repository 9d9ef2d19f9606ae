"""The extension in Chromium, on a chat page that behaves badly: nothing unguarded is seen, an answer is one session."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from project.client_library import CLIENT, COPY, PARTS, TABLE
from tests.client.pages import ROOT, Call, Pages, Reply
from tests.client.streams import HERON, ROOT_X, SSN, Streams, policy
from tests.e2e.conftest import QUIET, chromium
from tests.e2e.server import Demo, demo, wait_for
from tests.e2e.test_shadow_page import manage

EXTENSION = ROOT / "examples" / "browser-extension"
SECRET = "123-45-6789"
TEXT = f"The number you asked for: {SECRET}, and the weather is fine. ".ljust(600, "x")
"""In 20 or 40 pieces a border goes through the secret."""
CLEAN = TEXT.replace(SECRET, "[SSN]")
LOAD_MS = 60_000
DRIVER = Path(__file__).with_name("driver.js").read_text("utf-8")

WATCH = """() => {
  // All that could be seen, at every frame and after every change: text that is not displayed is not in innerText.
  // And what stands in each answer of ours.
  window.seen = new Set();
  window.painted = new Set();
  const look = () => {
    if (document.querySelector("main")) window.seen.add(document.querySelector("main").innerText);
    for (const answer of document.querySelectorAll(".sluicegate-answer")) window.painted.add(answer.textContent);
  };
  const all = { subtree: true, childList: true, characterData: true, attributes: true };
  new MutationObserver(look).observe(document, all);
  const frame = () => { look(); requestAnimationFrame(frame); };
  frame();
}"""

Open = Callable[..., Page]


@pytest.fixture
def extended(browser: Browser, tmp_path: Path) -> Iterator[BrowserContext]:
    """Chromium with the extension."""
    args = [
        *QUIET,
        "--headless=new",
        f"--disable-extensions-except={EXTENSION}",
        f"--load-extension={EXTENSION}",
        "--disable-features=DisableLoadExtensionCommandLineSwitch",
    ]
    context = browser.browser_type.launch_persistent_context(
        tmp_path / "profile", executable_path=chromium(), headless=False, args=args
    )
    context.set_default_timeout(LOAD_MS)
    yield context
    context.close()


@pytest.fixture
def chat(extended: BrowserContext, pages: Pages) -> Open:
    """``chat(url=…, **settings)``: saves the settings on the options page and opens the chat page."""

    def open_chat(**settings: str) -> Page:
        # The extension opens its settings itself when it is installed, perhaps in the tab that is there already.
        wait_for("the settings are open", lambda: settings_page(extended), limit_s=60)
        options = settings_page(extended)
        assert options is not None
        options.wait_for_load_state()
        given = {
            "url": pages.url,
            "key": "k",
            "root": ROOT_X,
            "policy": "t",
            "issuer": "",
            "fail": "closed",
            **settings,
        }
        for name in ("url", "key", "root", "policy", "issuer"):
            options.fill(f"[name={name}]", given[name])
        options.check(f"[name=fail][value={given['fail']}]")
        options.click("button")
        expect(options.locator("output")).to_have_text("Saved.")
        page = extended.new_page()
        page.goto(f"{pages.url}/chat/index.html")
        page.evaluate(WATCH)
        return page

    return open_chat


def settings_page(context: BrowserContext) -> Page | None:
    context.cookies()  # any question: it lets the driver hear what has happened
    return next((page for page in context.pages if page.url.endswith("/options.html")), None)


def ask(page: Page, text: str = TEXT, *, pieces: int = 20, pause: int = 25) -> None:
    page.fill("[name=text]", text)
    page.fill("[name=pieces]", str(pieces))
    page.fill("[name=pause]", str(pause))
    page.click("button")


def note(page: Page, state: str, *, n: int = 0) -> None:
    expect(page.locator(".sluicegate-note").nth(n)).to_have_attribute("data-state", state, timeout=LOAD_MS)


def shown(page: Page, n: int = 0) -> str:
    return page.locator(".sluicegate-answer").nth(n).text_content() or ""


def seen(page: Page) -> list[str]:
    said: list[str] = page.evaluate("() => [...window.seen]")
    return said


def painted_wrongly(page: Page) -> list[str]:
    """What an answer was at some moment without being a beginning of the clean text."""
    painted: list[str] = page.evaluate("() => [...window.painted]")
    assert CLEAN in painted  # whoever watched was not blind
    return [text for text in painted if not CLEAN.startswith(text)]


def until_rules_run(page: Page) -> None:
    """A first answer, and more until the rules have been fetched and run here."""
    for n in range(20):
        ask(page, "Hello.", pieces=1, pause=0)
        note(page, "done", n=n)
        if page.locator(".sluicegate").nth(n).get_attribute("data-mode") == "local":
            page.evaluate("""() => {
              document.querySelector("main").replaceChildren();
              for (const all of [window.seen, window.painted]) all.clear();
            }""")
            return
    raise AssertionError("the rules were never run")


def test_it_works(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat()
    until_rules_run(page)
    before = len(streams.sessions)
    pages.calls.clear()
    ask(page)
    note(page, "done")
    assert shown(page) == CLEAN
    assert len(streams.sessions) == before + 1
    assert len([call for call in pages.calls if call.path.startswith("/v1/stream/")]) <= 3
    assert len(seen(page)) > 5  # it was seen to grow
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


def test_the_page_without_the_extension_shows_it_all(browser: Browser, pages: Pages) -> None:
    """The control: were the watching blind, nothing would be found here either."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{pages.url}/chat/index.html")
    page.evaluate(WATCH)
    ask(page, pause=5)
    page.wait_for_selector("[data-state=done]")
    assert any(SECRET in text for text in seen(page))
    context.close()


def test_watch_sees_two_digits_that_are_painted_for_a_moment(browser: Browser, pages: Pages) -> None:
    """The other control: a border of pieces goes through the secret, and its beginning is told from the clean text."""
    at = TEXT.index(SECRET)
    for pieces in (20, 40):
        assert at // (600 // pieces) < (at + len(SECRET) - 1) // (600 // pieces)
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{pages.url}/chat/index.html")
    page.evaluate(WATCH)
    page.evaluate(
        """async (texts) => {
          const box = document.createElement("div");
          box.className = "sluicegate-answer";
          document.querySelector("main").append(box);
          for (const text of texts) {
            box.textContent = text;
            await Promise.resolve();
          }
        }""",
        [TEXT[:at], TEXT[: at + 2], CLEAN],
    )
    assert painted_wrongly(page) == ["The number you asked for: 12"]
    context.close()


def test_the_extensions_library_is_a_copy() -> None:
    for name in (*PARTS, TABLE):
        assert (COPY / name).read_bytes() == (CLIENT / name).read_bytes(), "run `make client`"


def test_without_rules_the_server_guards_with_six_calls(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root="")
    ask(page)
    note(page, "done")
    assert (shown(page), len(streams.sessions)) == (CLEAN, 1)
    assert len([call for call in pages.calls if call.path.startswith("/v1/stream/")]) <= 6
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


@pytest.mark.parametrize(("root", "most", "flush_s"), [(ROOT_X, 3, 4.0), ("", 6, 0.64)], ids=["local", "server"])
def test_calls_of_an_answer_that_comes_at_fifty_tokens_a_second(
    chat: Open, pages: Pages, root: str, most: int, flush_s: float
) -> None:
    """600 characters in 20 pieces, 3 s in all; a page that is slower by itself has a call more for each flush."""
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root=root)
    if root:
        until_rules_run(page)
    pages.calls.clear()
    began = time.monotonic()
    ask(page, pause=150)
    page.wait_for_selector("article[data-state=done]", state="attached")
    took_s = time.monotonic() - began
    note(page, "done")
    calls = [call for call in pages.calls if call.path.startswith("/v1/stream/")]
    assert took_s > 2.5
    assert 2 <= len(calls) <= max(most, 2 + took_s // flush_s), [call.path for call in calls]
    assert shown(page) == CLEAN
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


def test_rules_that_load_slowly_keep_no_answer_waiting(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    there = threading.Event()

    def answer(call: Call) -> Reply | None:
        if call.path.startswith("/v1/rules"):
            assert there.wait(120)
        return streams.answer(call)

    pages.answer = answer
    page = chat()
    wait_for("rules are asked for before there is an answer", lambda: bool(pages.asked("/v1/rules")))
    ask(page)
    note(page, "done")
    assert page.locator(".sluicegate").get_attribute("data-mode") == "server"
    assert (shown(page), painted_wrongly(page), there.is_set()) == (CLEAN, [], False)
    there.set()
    page.evaluate("() => document.querySelector('main').replaceChildren()")
    until_rules_run(page)


def test_blocked_answer_says_so_and_its_message_is_not_checked(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat()
    ask(page, "This is all about project blue heron and nothing else.")
    note(page, "blocked")
    assert shown(page).startswith("This is all about \n\n[This answer was stopped")
    page.wait_for_selector("[data-state=done]", state="attached")
    assert len(streams.sessions) == 1
    assert "heron" not in str(seen(page))


FACES = f"x{'🙂' * 29}{SECRET}{'🙂' * 30}x"


@pytest.mark.parametrize("fail", ["closed", pytest.param("open", marks=pytest.mark.long)])
@pytest.mark.parametrize("root", [ROOT_X, ""], ids=["local", "server"])
def test_characters_that_lie_on_a_border_of_pieces_rewrite_nothing(
    chat: Open, pages: Pages, root: str, fail: str
) -> None:
    """Taken for a rewritten text, the rest would be shut out, or shown unguarded."""
    units = FACES.encode("utf-16-le")
    size = -(-len(units) // 2 // 20)
    halves = [at for at in range(size, len(units) // 2, size) if 0xDC <= units[2 * at + 1] < 0xE0]
    assert len(halves) > 5  # pieces that begin with the second half of a pair
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root=root, fail=fail)
    if root:
        until_rules_run(page)
    before = len(streams.sessions)
    ask(page, FACES)
    note(page, "done")
    assert shown(page) == FACES.replace(SECRET, "[SSN]")
    (session,) = list(streams.sessions.values())[before:]
    assert "".join(session.deltas) == FACES
    assert SECRET not in str(seen(page))
    assert "\ufffd" not in str(seen(page))


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_server_down_what_the_setting_says_happens_visibly(chat: Open, pages: Pages, fail: str) -> None:
    pages.answer = lambda call: None
    page = chat(fail=fail)
    ask(page, pause=10)
    note(page, fail)
    expect(page.locator(".sluicegate-note")).to_be_visible()
    if fail == "closed":
        assert shown(page) == ""
        assert "123" not in str(seen(page))
        expect(page.locator(".sluicegate-note")).to_contain_text("cannot be checked")
    else:
        expect(page.locator(".sluicegate-answer")).to_have_text(TEXT)
        expect(page.locator(".sluicegate-note")).to_contain_text("NOT GUARDED")


WRITES = """([text, state]) => {
  // The page writes an answer by itself, in one place.
  const main = document.querySelector("main");
  const [last] = [...main.querySelectorAll("article")].slice(-1);
  const article = last ?? main.appendChild(document.createElement("article"));
  if (!last) article.append(Object.assign(document.createElement("div"), { className: "text" }));
  article.querySelector(".text").textContent = text;
  Object.assign(article.dataset, { author: "assistant", messageId: "m", state });
}"""
SAID = f"My number is {SECRET}. "
ON = "The weather is fine. "


def begun(chat: Open, pages: Pages, fail: str) -> Page:
    """An answer under way, guarded by the server, of which the first part has been let through."""
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root="", fail=fail)
    page.evaluate(WRITES, [SAID + ON, "streaming"])
    expect(page.locator(".sluicegate-answer")).to_contain_text("My number is [SSN]", timeout=LOAD_MS)
    note(page, "guarding")
    return page


def goes_on(page: Page, fail: str, text: str, why: str) -> None:
    """What the setting says, visibly, of a text that nobody can check any more."""
    note(page, fail)
    expect(page.locator(".sluicegate-note")).to_contain_text(why)
    expect(page.locator(".sluicegate-note")).to_be_visible()
    page.evaluate(WRITES, [text, "done"])
    if fail == "open":
        expect(page.locator(".sluicegate-answer")).to_contain_text("Unchecked.", timeout=LOAD_MS)
        expect(page.locator(".sluicegate-note")).to_contain_text("NOT GUARDED")
    else:
        page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        assert shown(page).startswith("My number is [SSN]")
        assert "Unchecked" not in str(seen(page))
        assert SECRET not in str(seen(page))
        expect(page.locator(".sluicegate-note")).to_contain_text("cannot be checked")
    expect(page.locator(".sluicegate-note")).to_be_visible()
    expect(page.locator(".text")).to_be_hidden()


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_server_that_goes_away_in_the_middle_of_an_answer(chat: Open, pages: Pages, fail: str) -> None:
    page = begun(chat, pages, fail)
    pages.answer = lambda call: None
    text = f"{SAID}{ON}{ON}Unchecked."
    page.evaluate(WRITES, [text, "streaming"])
    goes_on(page, fail, text, "The server cannot be asked")
    if fail == "open":
        assert SECRET not in shown(page)  # what was judged stays so


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_page_that_rewrites_what_was_checked(chat: Open, pages: Pages, fail: str) -> None:
    page = begun(chat, pages, fail)
    page.evaluate(WRITES, [f"Another beginning. {ON}", "streaming"])
    goes_on(page, fail, f"Another beginning. {ON}Unchecked.", "The page rewrote")


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_extension_that_is_reloaded_under_an_answer(
    chat: Open, pages: Pages, extended: BrowserContext, fail: str
) -> None:
    page = begun(chat, pages, fail)
    options = settings_page(extended)
    assert options is not None
    options.evaluate("() => void setTimeout(() => chrome.runtime.reload())")
    goes_on(page, fail, f"{SAID}{ON}Unchecked.", "The extension was stopped.")
    page.evaluate("() => document.querySelector('main').replaceChildren()")
    page.evaluate("(text) => document.querySelector('form').requestSubmit()", "")  # a new answer, with nobody to ask
    note(page, fail)
    expect(page.locator(".text")).to_be_hidden()


def test_blocked_answer_stays_blocked_whatever_the_page_writes_then(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(fail="open")
    page.evaluate(WRITES, ["This is all about project blue heron. ", "streaming"])
    note(page, "blocked")
    page.evaluate(WRITES, ["Once more: project blue heron. ", "streaming"])
    page.evaluate(WRITES, ["Once more: project blue heron. And again.", "done"])
    page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    note(page, "blocked")
    assert "heron" not in str(seen(page))


BEATS = """
@layer loud { .text { display: block !important; visibility: visible !important } }
html body main article[data-author][data-message-id] > div.text { display: block !important }
"""


def test_style_of_the_pages_that_shows_its_text_by_all_means_shows_nothing(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat()
    page.add_style_tag(content=BEATS)
    page.evaluate("""() => new MutationObserver(() => {
      // and a script that takes our style away whenever it comes
      for (const one of document.querySelectorAll(".text[style]")) if (!window.tired) one.removeAttribute("style");
      window.taken = (window.taken ?? 0) + 1;
      if (window.taken > 200) window.tired = true;
    }).observe(document, { subtree: true, childList: true, attributes: true })""")
    ask(page)
    note(page, "done")
    assert shown(page) == CLEAN
    assert page.evaluate("() => window.taken") > 20
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


def test_chat_in_a_frame_is_guarded_too(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat()
    page.goto(f"{pages.url}/blank")
    page.evaluate("() => document.querySelector('main').innerHTML = '<iframe src=/chat/index.html></iframe>'")
    frame = page.frame_locator("iframe")
    frame.locator("[name=text]").fill(TEXT)
    frame.locator("[name=pause]").fill("5")
    frame.locator("button").click()
    expect(frame.locator(".sluicegate-note")).to_have_attribute("data-state", "done", timeout=LOAD_MS)
    expect(frame.locator(".sluicegate-answer")).to_have_text(CLEAN)
    expect(frame.locator(".text")).to_be_hidden()


@pytest.mark.parametrize(("issuer", "mode"), [("us", "local"), ("", "server")], ids=["named", "another"])
def test_rules_of_the_issuer_that_is_named_are_run_and_no_others(
    chat: Open, pages: Pages, issuer: str, mode: str
) -> None:
    streams = Streams(policy(SSN, HERON), issuer="us")
    pages.answer = streams.answer
    page = chat(issuer=issuer)
    if mode == "local":
        until_rules_run(page)
    ask(page)
    note(page, "done")
    assert shown(page) == CLEAN
    assert page.locator(".sluicegate").get_attribute("data-mode") == mode


def in_our_world(page: Page) -> Callable[[str], str]:
    """Runs scripts where the content script runs."""
    worlds: list[dict[str, Any]] = []
    session = page.context.new_cdp_session(page)
    session.on("Runtime.executionContextCreated", lambda said: worlds.append(said["context"]))
    session.send("Runtime.enable")
    (ours,) = [one["id"] for one in worlds if one["origin"].startswith("chrome-extension://")]

    def run(script: str) -> str:
        asked = {"expression": script, "contextId": ours, "awaitPromise": True, "returnByValue": True}
        return str(session.send("Runtime.evaluate", asked)["result"].get("value"))

    return run


def test_what_runs_in_the_page_reads_no_key_and_changes_no_setting(chat: Open, pages: Pages) -> None:
    pages.answer = lambda call: None
    page = chat()
    run = in_our_world(page)
    read = run("chrome.storage.local.get('key').then((kept) => `read ${kept.key}`, (error) => `${error}`)")
    assert "not allowed" in read
    ask(page, "First.", pieces=1, pause=0)
    note(page, "closed")
    unguarded = {"url": pages.url, "key": "k", "root": "", "policy": "t", "fail": "open"}
    told = json.dumps({"to": "offscreen", "settings": unguarded})
    assert run(f"chrome.runtime.sendMessage({told}).then((said) => `${{said}}`, () => 'refused')") != "true"


def test_several_answers_at_once_are_a_session_each(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat()
    for _ in range(3):
        ask(page, pieces=40, pause=20)
    for n in range(3):
        note(page, "done", n=n)
        assert shown(page, n) == CLEAN
    assert len(streams.sessions) == 3
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


REBUILDS = """async ([text, how]) => {
  // One answer, whose message gets another id on its way, and once more when it has ended.
  const id = (name) => `${how}: ${name}`;
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  const main = document.querySelector("main");
  const built = (messageId, text, state) => {
    const article = document.createElement("article");
    Object.assign(article.dataset, { author: "assistant", messageId, state });
    article.append(Object.assign(document.createElement("div"), { className: "text", textContent: text }));
    return article;
  };
  let article = main.appendChild(built(id("new"), "", "streaming"));
  const write = (to) => (article.querySelector(".text").textContent = text.slice(0, to));
  for (let at = 0; at <= 300; at += 30, await frame()) write(at);
  if (how === "replaced") article.replaceWith((article = built(id("stored"), text.slice(0, 330), "streaming")));
  if (how === "renamed") article.dataset.messageId = id("stored");
  if (how === "there before it has text") {
    const fresh = main.appendChild(built(id("stored"), "", "streaming"));
    await frame();
    article.remove();
    article = fresh;
  }
  if (how === "gone for a while") {
    article.remove();
    await frame();
    article = main.appendChild(built(id("stored"), text.slice(0, 300), "streaming"));
  }
  for (let at = 330; at <= 600; at += 30, await frame()) write(at);
  article.dataset.state = "done";
  await frame();
  article.replaceWith(built(id("for good"), text, "done"));
  await frame();
}"""
HOW = ["replaced", "renamed", "there before it has text", "gone for a while"]


@pytest.mark.parametrize("root", [ROOT_X, ""], ids=["local", "server"])
def test_message_that_gets_another_id_stays_one_session(chat: Open, pages: Pages, root: str) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root=root)
    if root:
        until_rules_run(page)
    in_our_world(page)(STANDS)  # a slow machine is no page that is slow to build a message anew
    for how in HOW:
        before = len(streams.sessions)
        page.evaluate(REBUILDS, [TEXT, how])
        note(page, "done")
        assert shown(page) == CLEAN, how
        sessions = list(streams.sessions.values())[before:]
        assert ["".join(one.deltas) for one in sessions] == [TEXT], how
        page.evaluate("() => document.querySelector('main').replaceChildren()")
    assert painted_wrongly(page) == []
    assert not [text for text in seen(page) if "12" in text]


STOPS = """async ([text, messageId, from, to, state]) => {
  // An answer takes the place of the one before, which the page has taken away without an end, and is written on.
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  const article = document.createElement("article");
  Object.assign(article.dataset, { author: "assistant", messageId, state: "streaming" });
  article.append(Object.assign(document.createElement("div"), { className: "text" }));
  document.querySelector("main").replaceChildren(article);
  for (let at = from; at <= to; at += 30, await frame()) article.querySelector(".text").textContent = text.slice(0, at);
  article.dataset.state = state;
  await frame();
}"""


@pytest.mark.parametrize("root", [ROOT_X, ""], ids=["local", "server"])
def test_answer_that_is_generated_anew_is_a_session_of_its_own_though_it_begins_the_same(
    chat: Open, pages: Pages, root: str
) -> None:
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root=root)
    if root:
        until_rules_run(page)
    before = len(streams.sessions)
    other = TEXT[:300] + "Something else. "
    page.evaluate(STOPS, [TEXT, "first", 0, 300, "streaming"])
    wait_for("the first is told", lambda: page.evaluate("1") and len(streams.sessions) == before + 1)
    for n, (messageId, text) in enumerate({"second": TEXT, "third": other}.items(), 2):
        page.evaluate(STOPS, [text, messageId, 0, 630, "done"])
        note(page, "done")
        assert shown(page) == text.replace(SECRET, "[SSN]")
        assert len(streams.sessions) == before + n
    first, second, third = list(streams.sessions.values())[before:]
    assert ["".join(one.deltas) for one in (second, third)] == [TEXT, other]
    assert TEXT[:300].startswith("".join(first.deltas))
    assert SECRET not in str(seen(page))


STANDS = "globalThis.at = Date.now(); Date.now = () => at;"
"""Time stands still, or goes on as the test says."""


def test_answer_that_was_stopped_is_not_taken_up_by_one_that_comes_later(chat: Open, pages: Pages) -> None:
    """Also one whose first words are all that the other had: it comes when nobody builds a message anew any more."""
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root="")
    run = in_our_world(page)
    for n, (ms, sessions) in enumerate({1_000: 1, 10_000: 3}.items()):
        run(STANDS)
        page.evaluate(STOPS, [TEXT, f"{n}: stopped", 0, 90, "streaming"])
        note(page, "guarding")
        page.evaluate("() => document.querySelector('main').replaceChildren()")
        page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        run(f"at += {ms}")
        page.evaluate(STOPS, [TEXT, f"{n}: later", 120, 630, "done"])
        note(page, "done")
        assert shown(page) == CLEAN
        assert len(streams.sessions) == sessions
        assert "".join(list(streams.sessions.values())[-1].deltas) == TEXT
    assert SECRET not in str(seen(page))


def test_answers_that_say_the_same_are_a_session_each(chat: Open, pages: Pages) -> None:
    """The control: what is told apart by nothing but its id is not taken for one."""
    streams = Streams(policy(SSN, HERON))
    pages.answer = streams.answer
    page = chat(root="")
    for n in range(2):
        ask(page, "The same.", pieces=1, pause=0)
        note(page, "done", n=n)
    page.evaluate("() => document.querySelector('main').replaceChildren()")
    page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    ask(page, "The same.", pieces=1, pause=0)
    note(page, "done")
    assert [session.deltas for session in streams.sessions.values()] == [["The same."]] * 3


def test_page_says_why_rules_were_refused_and_what_the_setting_is(chat: Open, pages: Pages) -> None:
    streams = Streams(policy(SSN, HERON), age_s=2 * 86_400)
    pages.answer = streams.answer
    page = chat(fail="open")
    wait_for("the rules were given", lambda: [call.path for call, _ in pages.replies if "/v1/rules" in call.path] != [])
    ask(page)
    note(page, "done")
    setting = page.locator(".sluicegate-setting")
    expect(setting).to_have_text(
        "If it cannot be checked, it is shown unguarded. No rules run here (expired): It has expired."
    )
    expect(setting).to_be_visible()
    assert shown(page) == CLEAN


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        ("closed", "If it cannot be checked, nothing more is shown."),
        ("open", "If it cannot be checked, it is shown unguarded."),
    ],
)
def test_page_says_the_setting_before_anything_fails(chat: Open, pages: Pages, fail: str, says: str) -> None:
    pages.answer = Streams(policy(SSN, HERON)).answer
    page = chat(fail=fail)
    until_rules_run(page)
    ask(page)
    note(page, "done")
    expect(page.locator(".sluicegate-setting")).to_have_text(says)


SETTINGS = {"url": "", "key": "k 2", "root": ROOT_X, "policy": "shop", "issuer": "us", "fail": "open"}


def shown_settings(page: Page) -> dict[str, str]:
    """What the settings page shows when it has read what is kept."""
    page.reload()
    page.wait_for_function("async () => (await chrome.storage.local.get()).key === document.forms[0].key.value")
    said: dict[str, str] = page.evaluate("() => Object.fromEntries(new FormData(document.forms[0]))")
    return said


def test_settings_opened_again_show_what_was_saved(chat: Open, pages: Pages, extended: BrowserContext) -> None:
    wanted = {**SETTINGS, "url": pages.url}
    chat(**wanted)
    options = settings_page(extended)
    assert options is not None
    assert shown_settings(options) == wanted
    again = extended.new_page()
    again.goto(options.url)
    assert shown_settings(again) == wanted
    again.fill("[name=policy]", "")
    again.check("[name=fail][value=closed]")
    again.click("button")
    expect(again.locator("output")).to_have_text("Saved.")
    assert shown_settings(options) == {**wanted, "policy": "", "fail": "closed"}


def test_settings_for_a_server_that_may_not_be_asked_are_not_saved(
    chat: Open, pages: Pages, extended: BrowserContext
) -> None:
    wanted = {**SETTINGS, "url": pages.url}
    page = chat(**wanted)
    options = settings_page(extended)
    assert options is not None
    # Nobody is there to answer Chromium's question; this is what the page hears when it is answered with no.
    options.evaluate("""() => {
      window.asked = [];
      chrome.permissions.request = async (what) => !window.asked.push(what);
    }""")
    options.fill("[name=url]", "https://sluicegate.example/guard")
    options.fill("[name=key]", "another")
    options.click("button")
    expect(options.locator("output")).to_have_text("Not saved: the extension may not ask this server.")
    expect(options.locator("output")).to_be_visible()
    assert options.evaluate("() => window.asked") == [{"origins": ["https://sluicegate.example/*"]}]
    assert shown_settings(options) == wanted
    pages.answer = Streams(policy(SSN, HERON)).answer  # and what was saved before goes on
    ask(page)
    note(page, "done")
    assert shown(page) == CLEAN
    assert {call.headers["Authorization"] for call in pages.calls} == {"Bearer k 2"}


def test_with_a_real_server(chat: Open, pages: Pages, tmp_path: Path) -> None:
    """The demo's own policy, keys, bundle and streams, behind a relay that counts the calls and loses answers."""
    (tmp_path / "demo").mkdir()
    with demo(tmp_path / "demo") as server:
        lost: list[Call] = []

        def relayed(call: Call) -> Reply | None:
            said = forwarded(server, call)
            return None if call.path in LOSES and lost_once(lost, call) else said

        pages.answer = lambda call: forwarded(server, call)
        root, key = root_of(server.get("/.well-known/jwks.json")[1]), server.info["api_key"]
        page = chat(root=root, key=key, policy="basic")
        until_rules_run(page)
        pages.calls.clear()
        before = sessions(server)
        ask(page)
        note(page, "done")
        assert shown(page) == CLEAN
        assert len([call for call in pages.calls if call.path.startswith("/v1/stream/")]) <= 3
        assert sessions(server) == before + 1
        assert painted_wrongly(page) == []
        assert not [text for text in seen(page) if "12" in text]

        pages.answer = relayed
        for mode, pinned in (("local", root), ("server", "")):
            lost.clear()
            page.goto(f"{pages.url}/blank")
            options = {"url": pages.url, "key": key, "root": pinned, "policy": "basic", "rulesMs": LOAD_MS}
            options |= {"patienceMs": LOAD_MS, "limitMs": LOAD_MS}
            call = {"library": "/static/client/sluicegate.js", "options": options, "about": {"resume": f"in {mode}"}}
            pieces = [TEXT[at : at + 30] for at in range(0, len(TEXT), 30)]
            page.evaluate(DRIVER, {**call, "chunks": pieces[:12], "pauseMs": 100, "finish": False})
            page.wait_for_function("() => answer.session")
            page.reload()
            said = page.evaluate(DRIVER, {**call, "chunks": pieces, "cumulative": True})
            assert (said["visible"], said["state"], said["mode"]) == (CLEAN, "done", mode)
            assert {call.path for call in lost} >= {"/v1/stream/start", "/v1/stream/finish"}
        assert sessions(server) == before + 3

        pages.answer = lambda call: forwarded(server, call)
        rolled_back(page, pages, server, options | {"root": root, "policy": "rolled"})


SEVEN = """
from guardrails import services
for n in range(1, 8):
    rule = {"id": "word", "pattern": "heron", "placeholder": f"[{n}]"}
    guardrail = {"name": "word", "kind": "regex", "client": True, "config": {"rules": [rule]}}
    services.install(document={"policy": "rolled", "guardrails": [guardrail]})
"""


def rolled_back(page: Page, pages: Pages, server: Demo, options: dict[str, object]) -> None:
    """Version 7 is rolled back to 6: the client that ran it follows with one refresh, and asks with its tag before and
    after, in vain."""
    manage(server, "shell", "-c", SEVEN)
    page.goto(f"{pages.url}/blank")

    def guarded(*, again: bool) -> tuple[object, ...]:
        """The version that ran, by whose word, what it made of a heron; and how the calls for rules were answered."""
        pages.calls.clear()
        pages.replies.clear()
        call = {"library": "/static/client/sluicegate.js", "options": options, "about": {}}
        said = page.evaluate(DRIVER, {**call, "chunks": ["A her", "on."], "again": again})
        asked = [(status, bool(call.headers.get("If-None-Match"))) for call, status in pages.replies
                 if call.path.startswith("/v1/rules")]  # fmt: skip
        return said["rules"]["version"], said["mode"], said["visible"], said["refused"], asked

    assert guarded(again=False) == (7, "local", "A [7].", "", [(200, False)])
    assert guarded(again=True) == (7, "local", "A [7].", "", [(304, True)])
    manage(server, "rules", "rollback", "rolled", "6", "--note", "it hides too much")
    assert guarded(again=True) == (6, "local", "A [6].", "", [(200, True)])
    assert guarded(again=True) == (6, "local", "A [6].", "", [(304, True)])


SENT_ON = ("Authorization", "Idempotency-Key", "If-None-Match")
LOSES = ("/v1/stream/start", "/v1/stream/update", "/v1/stream/finish")


def lost_once(lost: list[Call], call: Call) -> bool:
    """Whether the answer to this call is to be lost: twice for each path, for Chromium itself asks a second time."""
    if sum(one.path == call.path for one in lost) > 1:
        return False
    lost.append(call)
    return True


def sessions(server: Demo) -> int:
    return int(str(server.rows("SELECT count(*) FROM streaming_auditsession")[0][0]))


def root_of(key_set: str) -> str:
    members = json.loads(key_set)["keys"]
    (root,) = [one["x"] for one in members if "sluicegate_signature" not in one]
    return str(root)


def forwarded(server: Demo, call: Call) -> Reply | None:
    headers = {name: value for name, value in call.headers.items() if name in SENT_ON}
    data = json.dumps(call.body).encode() if call.method == "POST" else None
    request = urllib.request.Request(
        server.url + call.path, data, {**headers, "Content-Type": "application/json"}, method=call.method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read()), {"ETag": response.headers.get("ETag") or ""}
    except urllib.error.HTTPError as error:
        said = error.read()  # nothing, where nothing has changed
        return error.code, json.loads(said or "{}"), {"ETag": error.headers.get("ETag") or ""}
