"""A policy file says what runs, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardrails.importers.policy_file import parse_policy_text, read_policy_file
from guardrails.policy import PolicyError, normalise

JSON = b'{"policy": "p", "guardrails": [{"name": "n", "kind": "keywords", "config": {"keywords": ["a"]}}]}'
TOML = b'policy = "p"\n[[guardrails]]\nname = "n"\nkind = "keywords"\n[guardrails.config]\nkeywords = ["a"]\n'


def test_it_works(tmp_path: Path) -> None:
    for suffix, data in ((".json", JSON), (".toml", TOML)):
        path = (tmp_path / "policy").with_suffix(suffix)
        path.write_bytes(data)
        assert normalise(read_policy_file(path)) == normalise(parse_policy_text(JSON, toml=False))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b"[]", "one object"), (b"\xff", "not UTF-8"),
     (b'{"a": 1, "a": 2}', "written twice"),
     (b'{"a": {"b": 1, "b": 1}}', "written twice"),
     (b"[" * 100_000, "not JSON"), (b" " * (16 << 20) + b"{}", "at most")],
)  # fmt: skip
def test_what_is_no_policy_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy_text(data, toml=False)


def test_toml_errors_name_the_place() -> None:
    with pytest.raises(PolicyError, match=r"not TOML: .*line 2"):
        parse_policy_text(b"a = 1\nb = = 2\n", toml=True)


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert parse_policy_text(b"\xef\xbb\xbf" + JSON, toml=False)["policy"] == "p"


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_policy_file(tmp_path / "no.json")
