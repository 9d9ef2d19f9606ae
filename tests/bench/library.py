"""What the browser library costs a reader and a server: calls of one message, and how long its text waits.

The library as a page loads it, in Chromium, against real servers: their keys, their signed rules, their streams. The
same message goes through the Python client in the benchmark beside this one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, Route, sync_playwright

from tests.bench.calls import CHARS, POLICY, SECONDS, SSN, TEXT, TOKENS_PER_S, Watched
from tests.bench.registry import Row, SkipBench, at_most, bench
from tests.e2e.conftest import QUIET, chromium
from tests.stack.servers import Stack, stack

CHUNKS = 20
MESSAGE = """async ({ options, chunks, pauseMs }) => {
  const { Sluicegate } = await import("/static/client/sluicegate.js");
  const gate = new Sluicegate({ url: location.origin, rulesMs: 30_000, ...options });
  await gate.ready;
  const answer = gate.answer();
  const [came, painted] = [[], []];
  answer.addEventListener("paint", ({ detail }) => painted.push([detail.at, detail.text, performance.now() / 1000]));
  const began = performance.now();
  for (const [n, chunk] of chunks.entries()) {
    const due = began + n * pauseMs - performance.now();
    if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
    came.push(performance.now() / 1000);
    answer.feed(chunk);
  }
  await answer.finish();
  const { visible, state, mode } = answer;
  return { came, painted, visible, state, mode, calls: gate.calls, refused: gate.refused?.code ?? "" };
}"""


@bench("library")
def library() -> Iterable[Row]:
    """A 600-character answer at 50 tokens/s through the browser library in Chromium: calls, time that text waits."""
    path = chromium()
    if path is None:
        raise SkipBench("there is no Chromium (set CHROMIUM to its path)")
    with (
        tempfile.TemporaryDirectory(prefix="sluicegate-bench-") as folder,
        stack(Path(folder), "sqlite") as servers,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=path, args=QUIET)
        page = browser.new_page()
        page.route("**/blank", _blank)
        page.goto(f"{servers.url}/blank")
        members = httpx.get(f"{servers.url}/.well-known/jwks.json", trust_env=False).json()["keys"]
        (root,) = [one["x"] for one in members if "sluicegate_signature" not in one]
        for mode, pinned in (("local", root), ("server", "")):
            _message(page, servers, pinned, mode)  # what a server does once is not the message's
            watched, calls = _message(page, servers, pinned, mode)
            yield from _rows(mode, watched, calls)
        browser.close()


def _rows(mode: str, watched: Watched, calls: int) -> Iterable[Row]:
    name, whose, most, limit_ms = {
        "local": ("rules", "with rules", 3, 200),
        "server": ("none", "without rules", 6, 1_000),
    }[mode]
    what = f"{CHARS} characters in {CHUNKS} chunks at {TOKENS_PER_S} tokens/s"
    yield at_most(f"library_calls_{name}", f"browser library {whose}, {what}: API calls", calls, most, "calls",
                  f"a check of every chunk: {CHUNKS} calls")  # fmt: skip
    yield at_most(f"library_gap_{name}", f"… {whose}: longest time between paints", watched.gap, 1, "s",
                  f"the model's own: {SECONDS / CHUNKS:.2f} s")  # fmt: skip
    yield at_most(f"library_wait_{name}", f"… {whose}: longest time that text waits",
                  1_000 * max(watched.waits), limit_ms, "ms")  # fmt: skip


def _message(page: Page, servers: Stack, root: str, mode: str) -> tuple[Watched, int]:
    size = len(TEXT) // CHUNKS
    options = {"key": servers.keys["owner"], "policy": POLICY, "root": root}
    chunks = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    said: dict[str, Any] = page.evaluate(
        MESSAGE, {"options": options, "chunks": chunks, "pauseMs": 1_000 * SECONDS / CHUNKS}
    )
    watched = Watched()
    for chunk, at in zip(chunks, said["came"], strict=True):
        watched.came += [at] * len(chunk)
    for at, text, when in said["painted"]:
        watched.paint(at, text, when)
    if (said["visible"], said["state"], said["mode"]) != (TEXT.replace(SSN, "[SSN]"), "done", mode):
        raise RuntimeError(f"this is not how the message ends: {json.dumps(said)[:2_000]}")
    return watched, int(said["calls"])


def _blank(route: Route) -> None:
    route.fulfill(content_type="text/html", body="<!doctype html><title>A page</title>")
