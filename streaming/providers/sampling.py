"""How a model is to pick its words: what a client of one dialect asks, for a provider of another one.

Exists because the dialects name and bound the same wishes differently. Protects the rule that a wish is either told to
the provider or refused: an answer that ignores it is an answer to another question. Pure.

    Sampling     the wishes, in words of our own; NO_WISHES: none
    WORDS        what each dialect calls them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Sampling:
    """None, or empty: as the provider does by itself. ``stop``: texts that end the answer."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None

    def asked(self) -> dict[str, object]:
        """The wishes that were made, by their names here."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, ())}


NO_WISHES = Sampling()

WORDS: Mapping[str, Mapping[str, str]] = {
    "openai": {
        "temperature": "temperature", "top_p": "top_p", "stop": "stop", "seed": "seed",
        "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty",
    },
    "anthropic": {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences"},
    "ollama": {
        "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop", "seed": "seed",
        "frequency_penalty": "frequency_penalty", "presence_penalty": "presence_penalty",
    },
}  # fmt: skip
"""By dialect: what each wish is called there. Ollama's stand in ``options``."""

HOTTEST = {"anthropic": 1.0}
"""The highest temperature that a dialect takes, where it is lower than the others' 2."""


def written(sampling: Sampling, dialect: str) -> dict[str, object]:
    """The wishes as fields of a request in this dialect; those that it has no word for are left out."""
    words = WORDS[dialect]
    return {
        words[name]: list(value) if isinstance(value, tuple) else value
        for name, value in sampling.asked().items()
        if name in words
    }


def beyond(sampling: Sampling, dialect: str) -> str:
    """The first wish that cannot be told in this dialect, by its name here; empty: all can."""
    for name, value in sampling.asked().items():
        if name not in WORDS[dialect]:
            return name
        if name == "temperature" and isinstance(value, int | float) and value > HOTTEST.get(dialect, value):
            return name
    return ""
