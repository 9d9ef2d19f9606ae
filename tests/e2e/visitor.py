"""A visitor in a real browser, and everything that could have told them too much.

``Visitor`` drives the page by what a person sees and records every WebSocket frame, every piece of text that ever
stood in the document, every console message and every request. ``assert_never_seen`` is the promise of the project
put as an assertion.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, WebSocket, expect

GRAM = 5
"""A secret is taken as seen when this many of its characters in a row were; fewer occur by chance in any prose."""

LOST = (
    "ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_SOCKET_NOT_CONNECTED", "ERR_INTERNET_DISCONNECTED", "WebSocket",
    "error: [object Event]",
)  # fmt: skip
"""What the browser says of a connection that was cut, refused or taken away, and htmx of the socket's error event."""

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

RECORDER = """
(() => {
  const seen = (window.__seen = []);
  const texts = (window.__texts = []);
  window.__firstPaint = 0;
  const note = (node) => {
    seen.push(node.nodeType === Node.ELEMENT_NODE ? node.outerHTML : node.data ?? "");
  };
  new MutationObserver((changes) => {
    for (const change of changes) {
      if (change.type === "childList") change.addedNodes.forEach(note);
      else if (change.type === "characterData") note(change.target);
      else seen.push(change.target.getAttribute(change.attributeName) ?? "");
    }
    const all = document.querySelectorAll(".answer [data-visible]");
    if (!all.length) return;
    const text = all[all.length - 1].textContent;
    if (text && !window.__firstPaint) {
      window.__firstPaint = -1;
      requestAnimationFrame(() => requestAnimationFrame(() => { window.__firstPaint = performance.now(); }));
    }
    if (texts[texts.length - 1] !== text) texts.push(text);
  }).observe(document, { childList: true, subtree: true, characterData: true, attributes: true });
})();
"""


class _Words(HTMLParser):
    """The text of a fragment and the values of its attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.words += [value for _, value in attrs if value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


class Visitor:
    """One page, watched."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.frames: list[str] = []
        self.sent: list[str] = []
        self.sockets: list[WebSocket] = []
        self.console: list[str] = []
        self.hosts: set[str] = set()
        page.add_init_script(RECORDER)
        page.on("websocket", self._socket)
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"pageerror: {error}"))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def _socket(self, socket: WebSocket) -> None:
        self.sockets.append(socket)
        self.hosts.add(urlsplit(socket.url).hostname or "")
        socket.on("framereceived", lambda payload: self.frames.append(_text(payload)))
        socket.on("framesent", lambda payload: self.sent.append(_text(payload)))

    # -- what a person does -------------------------------------------------------------------------------------

    def open(self, path: str = "/") -> Visitor:
        """Load the page and wait for its socket."""
        self.page.goto(self.base + path)
        return self.connected()

    def connected(self) -> Visitor:
        """Wait for the socket."""
        self.page.locator("main[data-connection=open]").wait_for(state="attached")
        return self

    def ask(self, prompt: str) -> None:
        """Type a prompt and press Enter."""
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.keyboard.press("Enter")

    def scenario(self, name: str) -> None:
        """Press one of the ready-made scenarios."""
        self.page.locator(f"[data-scenario={name}]").click()

    def guard(self, text: str) -> None:
        """Paste a text of one's own and let it stream."""
        self.page.get_by_role("button", name="Guard my own text").click()
        self.page.get_by_label("Your own text").fill(text)
        self.page.get_by_role("button", name="Stream it").click()

    def stream_to_end(self, text: str, timeout_s: float = 240) -> None:
        """``guard`` and wait until all is there, looking once a second: looking is work for the page as well."""
        self.guard(text)
        until(self.page, "document.querySelector('.answer:last-child .state')?.dataset.outcome", timeout_s, 1.0)

    # -- what a person sees -------------------------------------------------------------------------------------

    @property
    def answers(self) -> list[str]:
        """Visible text of every answer on the page."""
        return [str(text) for text in self.page.locator(".answer [data-visible]").all_text_contents()]

    @property
    def answer(self) -> str:
        """Visible text of the latest answer."""
        return self.answers[-1]

    @property
    def conversation(self) -> str:
        """Everything that the conversation shows, as a person reads it."""
        return self.page.locator("#conversation").inner_text()

    def state(self, state: str, timeout_s: float = 30) -> None:
        """Wait until the latest answer's session is in this state."""
        latest = self.page.locator(".answer .state").last
        expect(latest).to_have_attribute("data-state", state, timeout=timeout_s * 1000)

    def grown(self, chars: int) -> None:
        """Wait until the latest answer shows at least this many characters."""
        latest = self.page.locator(".answer [data-visible]").last
        expect(latest).to_have_text(re.compile(rf"^[\s\S]{{{chars},}}$"), timeout=30_000)

    def over(self, outcome: str, timeout_s: float = 30) -> None:
        """Wait until the latest answer is over, with this outcome."""
        latest = self.page.locator(".answer .state").last
        expect(latest).to_have_attribute("data-outcome", outcome, timeout=timeout_s * 1000)

    def guardrail(self, name: str) -> str:
        """State of a guardrail in its lane, as text."""
        return self.page.locator(f"#g-{name}-state").inner_text()

    @property
    def states_told(self) -> list[str]:
        """States of sessions in the order in which the server told them."""
        return re.findall(r'class="state" data-state="([A-Z]+)"', "".join(self.frames))

    @property
    def texts(self) -> list[str]:
        """Every visible text that the latest answer ever had, in order."""
        return [str(text) for text in self.page.evaluate("window.__texts")]

    @property
    def first_paint(self) -> float:
        """When the first character of an answer was painted, in milliseconds since the page began; waits for it."""
        # The page's policy forbids eval, which the driver's own waiting for a condition is built on.
        script = """() => new Promise((done) => {
          const look = () => (window.__firstPaint > 0 ? done(window.__firstPaint) : requestAnimationFrame(look));
          look();
        })"""
        return float(self.page.evaluate(script))

    # -- promises -----------------------------------------------------------------------------------------------

    def assert_grew_to(self, final: str) -> None:
        """The answer only ever grew, each time to a beginning of ``final``, and was never put right afterwards."""
        texts = [text for text in self.texts if text]
        assert texts
        assert texts[-1] == final
        for text in texts:
            assert final.startswith(text), f"{text!r} was shown on the way to {final!r}"
        assert self.page.locator("[data-repaired]").count() == 0

    def assert_never_seen(self, *secrets: str) -> None:
        """No piece of a secret was ever in a frame from the server or in the document."""
        read = _Words()
        for frame in self.frames:
            read.feed(frame)
        read.close()
        streamed = "".join(
            re.findall(r'<div hx-swap-oob="beforeend:#m-[^"]+-text">([^<]*)</div>', "".join(self.frames))
        )
        places = {
            "frames": UUID.sub("", "\n".join(read.words)),
            "stream": html.unescape(streamed),
            "document": UUID.sub("", "\n".join(map(str, self.page.evaluate("window.__seen")))),
            "page": UUID.sub("", self.page.content()),
        }
        for secret in secrets:
            for at in range(len(secret) - GRAM + 1):
                gram = secret[at : at + GRAM]
                for place, text in places.items():
                    assert gram not in text, f"{gram!r} of {secret!r} was in the {place}"

    def assert_clean(self, *but: str) -> None:
        """No console error, no violation of the page's policy, no request to another host.

        ``but``: words of what the browser itself says of a failure that the test has brought about.
        """
        said = [line for line in self.console if not any(one in line for one in but)]
        assert not said, said
        assert self.hosts <= {"127.0.0.1"}, self.hosts


def catch(page: Page, path: str, handler: Callable[[Route], None]) -> None:
    """Hand requests below ``path`` to ``handler``; returns when the browser does so, which may be a moment later."""
    caught: list[Route] = []

    def take(route: Route) -> None:
        caught.append(route)
        handler(route)

    page.route(f"**{path}**", take)
    end = time.monotonic() + 30
    while not caught:
        assert time.monotonic() < end, "the browser catches nothing"
        page.evaluate("path => fetch(path).then(() => 0, () => 0)", f"{path}0/nothing")


def until(page: Page, condition: str, timeout_s: float = 30, every_s: float = 0.05) -> None:
    """Wait in the page until ``condition`` (JavaScript) is true. Playwright's own wait needs ``eval`` to look again,
    which the page's policy forbids."""
    page.evaluate(
        f"""([timeout, every]) => new Promise((done, fail) => {{
          const end = performance.now() + timeout;
          const look = () => {{
            if ({condition}) done();
            else if (performance.now() > end) fail(new Error("not within " + timeout + " ms"));
            else setTimeout(look, every);
          }};
          look();
        }})""",
        [1000 * timeout_s, 1000 * every_s],
    )


def _text(payload: str | bytes) -> str:
    return payload if isinstance(payload, str) else payload.decode()
