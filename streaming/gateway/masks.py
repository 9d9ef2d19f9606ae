"""Masking in the gateway: whose placeholders, and where values come back.

Exists to join the pure half (``guardrails.masking``, ``core.restore``, ``core.json_text``) with requests of a dialect.
Protects the rule that a conversation keeps its placeholders although no dialect names conversations: what began it, and
the key that asks, name it. Nothing is kept from one request to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from guardrails.findings import AppliesTo
from guardrails.masking import Masker, masking_guardrails
from guardrails.policy import Policy, compile_policy
from streaming.checks import CheckedText
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel
from streaming.core.restore import Restorer
from streaming.gateway.gates import Restoring, nothing_masked
from streaming.gateway.prompt import first_asked
from streaming.gateway.walker import Json
from streaming.mask_keys import mask_keys

_LETS_ALL_PASS = compile_policy({"policy": "nothing", "guardrails": []})


class Masks:
    """The placeholders of one request."""

    def __init__(self, policy: Policy, body: Json, *, caller: str) -> None:
        self._policy = policy
        self._masking = masking_guardrails(policy)
        conversation = hashlib.sha256(first_asked(body).encode("utf-8", "replace")).hexdigest()
        self._masker = Masker(mask_keys(), caller=caller, conversation=conversation)

    def mask(self, text: str, checked: CheckedText, *, again: bool = False) -> str:
        """What goes upstream of a text. ``again``: its parts have been masked one by one."""
        if checked.blocked is not None:
            return checked.visible
        return self._masker.mask(text, checked.findings, checked.redactions, masking=self._masking, again=again)

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

    def _restorer(self, applies_to: AppliesTo, tool: str) -> Restorer | None:
        return Restorer(self._masker)

    @property
    def restore_arguments(self) -> Callable[[str, str], str]:
        """Arguments of a call as its tool gets them: with values only where the policy names the tool."""
        return self._arguments

    def _arguments(self, text: str, tool: str) -> str:
        if not len(self._masker) or tool not in self._policy.restore_in_tools:
            return text
        channel, gate = JsonChannel(self._masker), Gate(_LETS_ALL_PASS)
        shown = channel.encode(gate.feed(channel.decode(text)))
        shown += channel.encode(gate.feed(channel.decode_rest()))
        return shown + channel.encode(gate.finish()) + channel.finish()
