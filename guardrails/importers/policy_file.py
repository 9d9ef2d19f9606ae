"""Policy files: JSON or TOML text -> a policy document, not yet validated.

Protects the rule that what a file says is what runs: a key that is written twice is refused instead of one of the two
being dropped in silence.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from guardrails.policy import PolicyError

MAX_BYTES = 16 << 20


def read_policy_file(path: Path) -> dict[str, object]:
    """The document in ``path``; ``.toml`` files are TOML, all others JSON.

    Raises ``OSError`` when it cannot be read and ``PolicyError`` (without a path) when it is not such a file.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse_policy_text(data, toml=path.suffix.lower() == ".toml")


def parse_policy_text(data: bytes, *, toml: bool) -> dict[str, object]:
    """The document in a file's bytes. Raises ``PolicyError``."""
    if len(data) > MAX_BYTES:
        raise PolicyError("", f"a policy file is at most {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PolicyError("", f"not UTF-8 text (byte {error.start})") from None
    try:
        document = tomllib.loads(text) if toml else json.loads(text, object_pairs_hook=_no_duplicates)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError("", f"not {'TOML' if toml else 'JSON'}: {error}") from None
    if not isinstance(document, dict):
        raise PolicyError("", "a policy file holds one object")
    return document


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise PolicyError(key, "is written twice in the same object")
        found[key] = value
    return found
