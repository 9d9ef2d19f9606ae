"""The program that ``engine.py`` starts: rules on stdin, what the browsers' worker says of them on stdout.

Exists because V8 is guarded best by a process of its own: one that hangs or takes all memory is ended and takes nothing
along. Knows neither Django nor the database.
"""

from __future__ import annotations

import sys
from pathlib import Path

from py_mini_racer import JSEvalException, MiniRacer

MEMORY_LIMIT_BYTES = 512 * 2**20
FRAME = r"""
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


def answer(worker: str, question: str) -> str:
    """What the worker posts when it is sent ``question`` (JavaScript), as JSON. Raises ``JSEvalException``."""
    with MiniRacer() as engine:
        engine.set_hard_memory_limit(MEMORY_LIMIT_BYTES)
        engine.eval(FRAME)
        engine.eval(worker)
        engine.eval(f"onmessage({{data: {question}}})")
        return str(engine.eval("JSON.stringify(said)"))


def main() -> int:
    """``python -m guardrails.client.v8 WORKER``; exits with 1 and the name of what failed."""
    try:
        sys.stdout.write(answer(Path(sys.argv[1]).read_text("utf-8"), sys.stdin.read()))
    except JSEvalException as error:
        sys.stderr.write(type(error).__name__)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
