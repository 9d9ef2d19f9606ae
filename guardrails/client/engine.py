"""The parity vectors in JavaScript: the very worker that browsers load, in V8.

Exists because a client believes its rules only after it has tried every vector, and an author should hear of a rule
that browsers would refuse before anybody signs it. Nothing but the rules and the folding table goes in; the engine has
no files, no network and a time limit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from py_mini_racer import JSEvalException, MiniRacer

from guardrails.patterns import folding

TIME_LIMIT_S = 60.0
"""For all vectors of a policy together; a browser gives its worker less, and only what it needs of them."""

MEMORY_LIMIT_BYTES = 512 * 2**20
_WORKER = Path(__file__).resolve().parents[2] / "static" / "client" / "worker.js"
_FRAME = r"""
var said, onmessage;
function postMessage(what) { said = what; }
// What a browser has and the bare language has not: of URL, what the worker asks it, IPv6 addresses (RFC 4291).
class URL {
  constructor(text) {
    const host = /^http:\/\/\[([0-9A-Fa-f:.]*)\]$/.exec(text)?.[1] ?? "";
    const [, hex, dotted] = /^(.*?)((?:[0-9]+\.){3}[0-9]+)?$/.exec(host);
    const octets = dotted ? dotted.split(".") : [];
    const sides = hex.split("::");
    const last = sides.length - 1;
    if (dotted) sides[last] = sides[last].replace(/([0-9A-Fa-f]):$/, "$1");
    const groups = sides.flatMap((side) => (side ? side.split(":") : []));
    const size = groups.length + (dotted ? 2 : 0);
    const fits = last ? last === 1 && size < 8 : size === 8;
    const joined = !dotted || hex.endsWith(":");
    const read = groups.every((group) => /^[0-9A-Fa-f]{1,4}$/.test(group))
      && octets.every((octet) => octet <= 255 && String(+octet) === octet);
    if (!fits || !joined || !read) throw new TypeError("Invalid URL");
    this.hostname = [...groups, ...octets].some((part) => parseInt(part, 16)) ? `[${host}]` : "[::]";
  }
}
"""


@functools.cache
def _table() -> str:
    return Path(folding.__file__).with_name(f"folding_v{folding.table().version}.json").read_text("ascii")


def disparity_in_javascript(payload: Mapping[str, object]) -> str:
    """What the worker says against these client rules: empty if every vector gives the spans that are stated.

    Otherwise ``guardrail/rule`` of the first that does not, or why the rules could not be read or tried at all.
    """
    return _said(json.dumps({"guardrails": payload["guardrails"], "classes": payload["classes"]}, sort_keys=True))


@functools.lru_cache(maxsize=32)
def _said(rules: str) -> str:
    question = f'onmessage({{data: {{n: 1, does: "load", rules: {rules}, table: {_table()}}}}})'
    try:
        with MiniRacer() as engine:
            engine.set_hard_memory_limit(MEMORY_LIMIT_BYTES)
            engine.eval(_FRAME)
            engine.eval(_WORKER.read_text("utf-8"))
            engine.eval(question, timeout_sec=TIME_LIMIT_S)
            said = json.loads(str(engine.eval("JSON.stringify(said)")))
    except JSEvalException as error:
        return f"the rules cannot be tried ({type(error).__name__})"
    return str(said.get("error") or said.get("out") or "")
