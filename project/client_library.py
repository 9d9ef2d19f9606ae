"""Writes what browsers load from ``static/client/src`` (``python -m project.client_library``, ``make client``).

Two files, ``sluicegate.js`` for pages and ``worker.js`` for their rules, without comments and long names, because every
page pays for each byte; the folding table, which is data with a digest of its own, is copied beside them. The result is
kept under version control, so that nobody needs a tool to serve it; a test says when it is not what the sources give.
The example of a browser extension, which may load nothing from elsewhere, has a copy.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from guardrails.patterns import folding

CLIENT = Path(__file__).resolve().parents[1] / "static" / "client"
COPY = CLIENT.parents[1] / "examples" / "browser-extension" / "lib"
TABLE = f"folding_v{folding.table().version}.json"
PARTS = {
    "sluicegate.js": ("verify", "rules", "answer", "sluicegate"),
    "worker.js": ("match", "checks", "gate", "worker"),
}
"""What each file is made of; a module comes behind those that it imports."""
EXPORTED = ("Answer", "Refused", "Sluicegate")
_IMPORT = re.compile(r"^(?:import .*|export \{.*)\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const)\b)", re.MULTILINE)


def built(name: str) -> str:
    """One of the files, from the sources as they are."""
    import minify  # type: ignore[import-untyped]  # a development tool: nothing that serves needs it

    texts = [(CLIENT / "src" / f"{part}.js").read_text("utf-8") for part in PARTS[name]]
    body = "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)
    if name == "sluicegate.js":
        names = ",".join(EXPORTED)
        body = f"export const {{{names}}} = (() => {{ {body}\nreturn {{{names}}} }})();"
    else:
        body = f"(() => {{ {body}\n}})();"
    said: str = minify.string("text/javascript", body)
    return f"// make client\n{said}\n"


def main() -> None:
    """Write the files."""
    for name in PARTS:
        (CLIENT / name).write_text(built(name), "utf-8")
    shutil.copyfile(Path(folding.__file__).with_name(TABLE), CLIENT / TABLE)
    COPY.mkdir(exist_ok=True)
    for name in (*PARTS, TABLE):
        shutil.copyfile(CLIENT / name, COPY / name)


if __name__ == "__main__":
    main()
