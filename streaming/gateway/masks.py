"""Masking in the gateway: whose placeholders, and where values come back.

Exists to join the pure half (``guardrails.masking``, ``core.restore``, ``core.json_text``) with requests of a dialect.
Protects the rule that a conversation keeps its placeholders although no dialect names conversations: what began it, and
the key that asks, name it. Nothing is kept from one request to the next. And an answer that goes on with the last
message of its request begins where that message ends: an address that it began takes no value in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from guardrails.findings import AppliesTo, Finding
from guardrails.masking import Masker, masking_guardrails, redacting_guardrails
from guardrails.performance import Checkpoint
from guardrails.policy import Policy
from streaming.checks import CheckedText
from streaming.core.json_text import JsonChannel
from streaming.core.restore import Restorer
from streaming.gateway.gates import Restoring, nothing_masked
from streaming.gateway.json_answers import TEXTS, JsonRestorer, asked_for, begins_json
from streaming.gateway.loose_json import is_json, laid_open, unescaped
from streaming.gateway.names import looked
from streaming.gateway.prompt import first_asked
from streaming.gateway.sweep import LONG
from streaming.gateway.walker import Json
from streaming.mask_keys import mask_keys

_LONGEST = 4 * LONG
"""Characters of thoughts that are looked at once more while nobody else streams, or of a message that is continued."""
_BLANK = re.compile(r"[ \t\n]")
_MARKUP = ("<", "](", "]:")
"""What begins something that may still be open however much stands behind it."""


class Masks:
    """The placeholders of one request."""

    def __init__(self, policy: Policy, body: Json, *, caller: str) -> None:
        self._policy = policy
        self._json = asked_for(body)
        self._begun = _begun(body)
        self._before: dict[str, Restorer | None] = {}
        self._rules = policy.only(Checkpoint.IMMEDIATE)
        self._masking, self._redacting = masking_guardrails(policy), redacting_guardrails(policy)
        conversation = hashlib.sha256(first_asked(body).encode("utf-8", "replace")).hexdigest()
        self._masker = Masker(mask_keys(), caller=caller, conversation=conversation)

    def mask(self, text: str, checked: CheckedText, *, again: bool = False) -> str:
        """What goes upstream of a text. ``again``: its parts have been masked one by one."""
        if checked.blocked is not None:
            return checked.visible
        masking, redacting = self._masking, self._redacting
        return self._masker.mask(
            text, checked.findings, checked.redactions, masking=masking, redacting=redacting, again=again
        )

    def hidden(self, text: str, findings: Sequence[Finding]) -> str:
        """A text with what was found masked, and every value that is masked elsewhere; nothing else of it is hidden."""
        masked = self._masker.mask(text, findings, masking=self._masking, again=True)
        return self._masker.swept(masked, redacted=False)

    def swept(self, text: str) -> str:
        """What goes upstream of a text when all of them have been looked at: without what was masked or redacted."""
        return self._masker.swept(text)

    def swept_of_masked(self, text: str) -> str:
        """The same where what was redacted has to stay, because its placeholder would name nothing."""
        return self._masker.swept(text, redacted=False)

    @property
    def masked(self) -> int:
        """How many different values have a placeholder."""
        return len(self._masker)

    @property
    def put_back(self) -> int:
        """How often one of them has come back in the answer."""
        return self._masker.put_back

    @property
    def restoring(self) -> Restoring:
        """How values come back, once every text of the request has been masked."""
        return self._restorer if len(self._masker) else nothing_masked

    def _restorer(self, channel: str) -> Restorer | None:
        json = self._json and channel in TEXTS
        made = JsonRestorer(self._masker) if json else Restorer(self._masker)
        if not (begun := self._begun.get("thinking" if channel == "thinking" else "text", "")):
            return made
        if channel not in self._before:
            self._before[channel] = self._behind(begun, json=json)
        if (before := self._before[channel]) is None:
            return None
        made.follow(before)
        return made

    def _behind(self, text: str, *, json: bool) -> Restorer | None:
        """What ends where ``text`` does; None where too much stands in front of that to say where it is.

        ``json``: a text that begins as JSON is JSON. Nothing comes back behind a string of it that has not ended.
        """
        cut = 0
        if json and begins_json(text):
            channel = JsonChannel()
            channel.decode(text[:_LONGEST])
            if len(text) > _LONGEST or channel.within_string or not channel.is_json:
                return None
            begun = JsonRestorer(self._masker)
            begun.begin_behind(text)
            begun.go_on()
            return begun
        if len(text) > _LONGEST:
            blank = _BLANK.search(text, len(text) - _LONGEST)
            cut = blank.end() if blank is not None else len(text)
            if blank is None or any(sign in text[:cut] for sign in _MARKUP):
                return None
        before = Restorer(self._masker)
        before.begin_behind(text[cut:])
        return before

    def same_again(self, written: str, shown: str) -> bool:
        """Whether a text that the client got as ``shown`` goes upstream as it was written, when it is sent back.

        The rules for prompts look at it then, whatever they thought of it in the answer. Where they decide, a text that
        is too long to be looked at in the event loop counts as altered.
        """
        if len(shown) > _LONGEST:
            decided = any(guardrail.decides for guardrail in self._rules.running(AppliesTo.PROMPT))
            return not decided and self._masker.swept(shown) == written
        said = laid_open(shown, lambda text: looked(self._rules, text, AppliesTo.PROMPT).findings)
        checked = looked(self._rules, said, AppliesTo.PROMPT)
        return checked.blocked is None and self._masker.swept(self.mask(said, checked)) == written

    @property
    def restore_arguments(self) -> Callable[[str, str], str]:
        """Arguments of a call as its tool gets them: with values only where the policy names the tool."""
        return self._arguments

    def _arguments(self, text: str, tool: str) -> str:
        if not len(self._masker) or tool not in self._policy.restore_in_tools:
            return text
        if (json := is_json(text)) or text.lstrip()[:1] in ("{", "["):
            before, channel = self._masker.put_back, JsonChannel(self._masker)
            shown = unescaped(text, channel)
            inside = self._masker.put_back - before
            if not inside:
                return text
            if json or channel.is_json:
                return shown
            self._masker.put_back = before  # a program that begins so, to which every sign matters
            free = self._freely(text)
            if self._masker.put_back - before <= inside:
                return free
            self._masker.put_back = before  # one of them would be in an address, or in no string
            return text
        return self._freely(text)  # the free text of a custom tool

    def _freely(self, text: str) -> str:
        restorer = Restorer(self._masker, one_value=True)
        return restorer.feed(text) + restorer.finish()


def _begun(body: Json) -> dict[str, str]:
    """The answer that a request has begun itself: the thoughts and the text of a last message that is an answer."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return {}
    content = last.get("content")
    parts: list[object] = [*content] if isinstance(content, list) else [content]
    parts += [{"refusal": last.get("refusal")}]
    parts += [{"thinking": last.get(name)} for name in ("reasoning_content", "reasoning", "thinking")]
    return {  # a line end between them would end a link
        "text": "".join(text for part in parts for text in _texts(part, "text", "refusal")),
        "thinking": "".join(text for part in parts if isinstance(part, dict) for text in _texts(part, "thinking")),
    }


def _texts(part: object, *names: str) -> list[str]:
    """The texts of a part of a message, which may be one itself."""
    found = [part.get(name) for name in names] if isinstance(part, dict) else [part]
    return [text for text in found if isinstance(text, str)]
