"""Texts to measure with: the same in every run, made here or taken from the standard library, never downloaded.

Prose is half everyday sentences put together from a vocabulary, half paragraphs of the language reference that comes
with Python; code is the source of standard modules; the rest is a dozen languages, emoji and combining marks.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import random
import re
from pydoc_data import topics

_OPENERS = [
    "In most cases", "As far as I can tell", "If you are new to this", "To begin with", "After a few minutes",
    "On a quiet morning", "When the weather turns", "For a small team", "Because of that", "Once it has cooled down",
]  # fmt: skip
_SUBJECTS = [
    "the recipe", "a good gardener", "our neighbour Maria", "the museum in Lisbon", "every second train",
    "the contract", "your doctor", "the old radio", "a simple spreadsheet", "the school board", "Dr. Okafor",
    "the river path", "your landlord", "the bakery on Elm Street", "customer support", "the hiking club",
]  # fmt: skip
_VERBS = [
    "needs about {n} minutes", "costs roughly ${n}.{m}", "was built in 19{m}", "opens at {h}:{m}", "is worth a visit",
    "should be kept in a dry place", "gives you {n} % more room", "replaces the one from {n} March 20{m}",
    "does not depend on the weather", "works best with {n} grams of flour", "will answer within {h} days",
    "explains why the first attempt failed", "can be read in one evening", "asks for a password of {h} characters",
    "takes version {h}.{m}.{n} or later",
]  # fmt: skip
_TAILS = [
    "which surprises many people.", "so there is no need to hurry.", "but only if you ask nicely!",
    "and that is all there is to it.", "(see page {n} of the manual).", "although opinions differ.",
    'as she said: "try it again tomorrow".', "at least until room {n} is free again.", "and nobody minds.",
    "which is why I would wait; you can still change it later.",
]  # fmt: skip
_MODULES = ["argparse", "json.decoder", "http.client", "textwrap", "asyncio.streams", "dataclasses", "logging"]
_LANGUAGES = [
    "Der Zug nach München fährt um 8:30 Uhr von Gleis 12, und die Straße dorthin ist gesperrt. ",
    "Où est la gare ? Elle se trouve à côté de l'hôtel, près de la forêt. ",
    "El niño comió una manzana mañana por la mañana, ¿verdad? ",
    "Zażółć gęślą jaźń, a potem odpocznij chwilę przy ciepłej herbacie. ",
    "Сегодня хорошая погода, поэтому мы пойдём гулять в парк после обеда. ",
    "Καλημέρα σας, πού είναι το μουσείο της πόλης; ",
    "東京都は日本の首都であり、多くの人が住んでいます。",
    "这是一个没有空格的句子,里面有一些数字 3 和 15。",
    "오늘은 날씨가 좋아서 공원에 산책하러 갑니다. ",
    "مرحبا بكم في المدينة القديمة، أين المتحف؟ ",
    "नमस्ते, आज मौसम बहुत अच्छा है। ",
    "Bugün hava güzel, İstanbul'da buluşalım mı? ",
    "Great news 🎉🙂 the build is green ✅ — ship it 🚀! ",
    "A cafe\u0301 with a nai\u0308ve menu\u200b, 5\u202f€ “all in”. ",
]


def _answers(size: int, chance: random.Random) -> str:
    def words(options: list[str]) -> str:
        picked = chance.choice(options)
        return picked.format(n=chance.randint(2, 400), m=chance.randint(10, 99), h=chance.randint(2, 19))

    out: list[str] = []
    length = 0
    while length < size:
        sentence = f"{words(_OPENERS)}, {words(_SUBJECTS)} {words(_VERBS)}, {words(_TAILS)} "
        if chance.random() < 0.15:
            sentence += "\n\n"
        if chance.random() < 0.1:
            sentence = f"- {sentence}\n"
        out.append(sentence)
        length += len(sentence)
    return "".join(out)[:size]


@functools.cache
def _paragraphs() -> tuple[str, ...]:
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(topics.topics[name] for name in sorted(topics.topics)))
    return tuple(" ".join(p.split()) + "\n\n" for p in paragraphs if len(p) > 120 and ">>>" not in p and "::=" not in p)


def _reference(size: int, chance: random.Random) -> str:
    out: list[str] = []
    length = 0
    while length < size:
        out.append(chance.choice(_paragraphs()))
        length += len(out[-1])
    return "".join(out)[:size]


def prose(size: int, seed: int = 1) -> str:
    """English prose of ``size`` code points."""
    chance = random.Random(seed)
    return _answers(size // 2, chance) + _reference(size - size // 2, chance)


@functools.cache
def _sources() -> str:
    return "".join(inspect.getsource(importlib.import_module(name)) for name in _MODULES)


def code(size: int, seed: int = 1) -> str:
    """Python source of ``size`` code points."""
    source = _sources()
    at = random.Random(seed).randrange(len(source))
    return (source[at:] + source * (1 + size // len(source)))[:size]


def unicode_text(size: int, seed: int = 1) -> str:
    """A dozen languages, ``size`` code points in all."""
    chance = random.Random(seed)
    out: list[str] = []
    length = 0
    while length < size:
        out.append(chance.choice(_LANGUAGES))
        length += len(out[-1])
    return "".join(out)[:size]


@functools.lru_cache(maxsize=8)
def mixed(size: int, seed: int = 1) -> str:
    """60 % prose, 25 % code, 15 % other languages, in passages of about 2,000 code points."""
    chance = random.Random(seed)
    out: list[str] = []
    length = 0
    while length < size:
        make = chance.choices((prose, code, unicode_text), (60, 25, 15))[0]
        out.append(make(min(2000, size - length), chance.getrandbits(30)))
        length += len(out[-1])
    return "".join(out)


def chunks(text: str, seed: int = 1, longest: int = 6) -> list[str]:
    """The text in pieces of 1 to ``longest`` code points, as models send it."""
    chance = random.Random(seed)
    out: list[str] = []
    at = 0
    while at < len(text):
        step = chance.randint(1, longest)
        out.append(text[at : at + step])
        at += step
    return out
