"""The box of the demo page: emptied when what stood in it was taken, and at no other time. In V8, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from py_mini_racer import MiniRacer

ROOT = Path(__file__).parents[2]
PAGE = """
class Node {
  constructor(fields) { this.heard = {}; Object.assign(this, { dataset: {}, hidden: false, ...fields }); }
  addEventListener(type, heard) { (this.heard[type] ??= []).push(heard); }
  tell(type, event = {}) { for (const heard of this.heard[type] ?? []) heard({ type, target: this, ...event }); }
  querySelector() { return this.box; }
  querySelectorAll() { return []; }
  focus() {}
}
const box = new Node({ name: "prompt", value: "" });
const ids = {
  ask: new Node({ box }), own: new Node({ box: new Node({ name: "text", value: "" }), hidden: true }),
  stop: new Node(), run: new Node({ dataset: { run: "streaming" } }),
};
const scenario = new Node(), stopper = new Node(), page = new Node();
const document = Object.assign(new Node(), { getElementById: (id) => ids[id] });
const type = (text) => { box.value = text; };
const send = (form, frame) => {
  const event = { target: form, detail: { message: JSON.stringify({ HEADERS: {}, ...frame }) } };
  form.tell("htmx:wsAfterSend", event);
  page.tell("htmx:wsAfterSend", event);
};
const ask = () => send(ids.ask, { type: "start", prompt: box.value });
const press = () => send(scenario, { type: "start", prompt: "A ready-made one" });
const stop = () => send(stopper, { type: "interrupt" });
const told = (kind) => {
  page.tell("htmx:wsAfterMessage", { detail: { message: `<i id="cursor" data-type="${kind}"></i>` } });
};
const taken = () => told("message_new"), refused = () => told("error");
"""


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ("type('one'); ask(); taken()", ""),
        ("type('one'); ask(); told('timing'); stop(); taken()", ""),
        ("type('one'); ask(); type('one and more'); taken()", "one and more"),
        ("type('one'); ask(); taken(); type('two'); taken()", "two"),
        ("type('one'); ask(); refused()", "one"),
        ("type('one'); ask(); refused(); press(); taken()", "one"),
        ("type('one'); ask(); press(); taken()", "one"),
    ],
    ids=["taken", "stopped at once", "typed on", "the next one", "refused", "refused, then a scenario", "a scenario"],
)  # fmt: skip
def test_what_was_typed_and_not_sent_stays(steps: str, left: str) -> None:
    source = (ROOT / "static/js/composer.js").read_text("utf-8").replace("export function", "function")
    with MiniRacer() as engine:
        engine.eval(PAGE + source)
        said = engine.eval(f"startComposer(page); {steps}; JSON.stringify(box.value)")
    assert json.loads(str(said)) == left
