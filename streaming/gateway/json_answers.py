"""Answers that are JSON because the client asked for JSON: values come back into their strings as JSON writes them.

Exists because a value may have a quote, a backslash or a line end in it, and a program reads such an answer. Protects
the rule that what was JSON when the model wrote it is JSON when the client gets it, and that no value comes back into a
string of it that begins with an address, which the program may open, blanks and all. Nor does one come back where the
text as it is, shown as Markdown or HTML by whoever cannot read it, has an open tag or link. Pure.
"""

from __future__ import annotations

from guardrails.masking import Masker
from guardrails.policy import compile_policy
from streaming.core.gate import Gate
from streaming.core.json_text import JsonChannel
from streaming.core.places import Place
from streaming.core.restore import Restorer
from streaming.gateway.walker import Json

_LETS_ALL_PASS = compile_policy({"policy": "nothing", "guardrails": []})
TEXTS = frozenset({"text", "content"})
"""Channels that are an answer's text."""


def asked_for(body: Json) -> bool:
    """Whether a request wants JSON for its answer, in any of the dialects."""
    match body:
        case (
            {"response_format": {"type": "json_object" | "json_schema"}}
            | {"output_format": {"type": "json_schema"}}
            | {"output_config": {"format": {"type": "json_schema"}}}
            | {"format": "json" | dict()}
            | {"structured_outputs": {"json": str() | dict()} | {"json_object": True}}  # as vLLM calls it
        ):
            return True
    return bool(body.get("guided_json"))  # as vLLM called it


def begins_json(text: str) -> bool:
    """Whether a text is read as JSON where JSON is asked for: by its first sign."""
    return text.lstrip()[:1] in ("{", "[", '"')


class JsonRestorer(Restorer):
    """Puts values back into the strings of JSON; into an answer that is none, as into any text.

    Which of them it is, its first sign says, or that of what it goes on with.
    """

    __slots__ = ("_begun", "_closed", "_gate_of_json", "_json")

    def __init__(self, masker: Masker) -> None:
        super().__init__(masker)
        self._begun = self._closed = False
        self._json: JsonChannel | None = None
        self._gate_of_json = Gate(_LETS_ALL_PASS)

    def feed(self, text: str) -> str:
        """More text that was released. Returns what can be shown now."""
        if not self._begun and (said := text.lstrip()):
            self._begun = True
            if begins_json(said):
                self._json = JsonChannel(self._masker, around=self._place)
        if self._closed:
            return text
        if not self._begun:
            self._read(text)
            return text
        if self._json is None:
            return super().feed(text)
        return self._json.encode(self._gate_of_json.feed(self._json.decode(text)))

    def finish(self) -> str:
        """The channel has ended. Returns the rest."""
        if self._closed or self._json is None:
            return super().finish()
        channel, gate = self._json, self._gate_of_json
        shown = channel.encode(gate.feed(channel.decode_rest()))
        return shown + channel.encode(gate.finish()) + channel.finish()

    def follow(self, former: Restorer) -> None:
        """Go on where another channel has ended. Behind a string of JSON that has not ended nothing comes back."""
        super().follow(former)
        if isinstance(former, JsonRestorer):
            json = former._json
            self._closed = former._closed or (json is not None and (json.within_string or not json.is_json))
            if json is not None:
                self.go_on()

    def stand_behind(self, former: Restorer | None, held: str, *, again: bool = False) -> bool:
        """The same of a text that is none of JSON; what has begun as JSON goes on where it was."""
        if again and self._json is not None:
            return True
        places = None if former is None else former._open_places(held)
        if places is not None and len(places) > 1 and not all(place.running_text for place in places):
            return False  # within JSON but one of them is followed
        return super().stand_behind(former, held, again=again)

    def _open_places(self, held: str) -> list[Place] | None:
        return None if self._closed or self._json is not None else super()._open_places(held)

    def go_on(self) -> None:
        """JSON has begun in front of this channel, whatever its first sign is. Call it behind ``follow``."""
        self._begun, self._json = True, JsonChannel(self._masker, around=self._place)
