"""What may be spoken of: the `topics` kind.

Protects the rule that a text is judged while it streams: a topic is a list of telling words and phrases, and it is
touched where one of them stands. Denied topics are hits; where topics are allowed by name, every other *known* topic
is one. (Whether a text as a whole keeps to a subject is a question for a judge, not for a list.)
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, Strict, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.kinds.keywords import phrase_pattern
from guardrails.patterns.behind import found_behind
from guardrails.patterns.rule import Rule
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

KNOWN_TOPICS: dict[str, tuple[str, ...]] = {
    "adult": (
        "porn", "pornography", "pornographic", "xxx video", "nude photos", "nudes", "sex tape", "escort service",
        "erotic story", "explicit sex", "sexual intercourse", "sexting",
    ),
    "alcohol": ("beer", "whiskey", "whisky", "vodka", "tequila", "binge drinking", "get drunk", "cocktail recipe"),
    "drugs": (
        "cocaine", "heroin", "methamphetamine", "crystal meth", "fentanyl", "mdma", "ecstasy pills", "lsd",
        "psilocybin", "crack pipe", "drug dealer", "get high",
    ),
    "financial_advice": (
        "you should invest", "you should buy shares", "guaranteed return", "guaranteed returns", "guaranteed profit",
        "risk-free investment", "stock tip", "stock tips", "insider tip", "hot stock", "buy this stock",
        "sell this stock", "put your savings into", "double your money",
    ),
    "gambling": ("casino", "roulette", "blackjack", "slot machine", "slot machines", "sports betting", "place a bet",
                 "betting odds", "online poker", "bookmaker"),
    "hate": ("ethnic cleansing", "master race", "racial purity", "subhuman", "white power", "heil hitler",
             "gas the", "death to all"),
    "legal_advice": (
        "you should sue", "you should plead", "plead guilty", "you will win the case", "legal loophole",
        "as your lawyer", "as your attorney", "you are legally entitled",
    ),
    "medical_advice": (
        "you should take", "recommended dose for you", "stop taking your medication", "increase your dose",
        "i diagnose", "my diagnosis is", "you have cancer", "you have diabetes", "instead of seeing a doctor",
        "no need to see a doctor", "cure for cancer",
    ),
    "politics": (
        "vote for", "vote against", "election campaign", "political party", "left-wing", "right-wing", "republicans",
        "democrats", "prime minister", "impeachment", "abortion law", "gun control",
    ),
    "religion": ("the bible", "the quran", "the koran", "the torah", "jesus christ", "holy spirit", "blasphemy",
                 "infidel", "infidels", "one true god"),
    "self_harm": (
        "kill myself", "kill yourself", "commit suicide", "suicide method", "suicide methods", "suicidal", "self-harm",
        "self harm", "cut myself", "end my life", "overdose on",
    ),
    "tobacco": ("cigarette", "cigarettes", "cigars", "chewing tobacco", "vape", "vaping"),
    "violence": ("behead", "beheading", "torture", "massacre", "mass shooting", "murder", "stab him", "stab her",
                 "beat him up", "beat her up"),
    "weapons": (
        "pipe bomb", "build a bomb", "make a bomb", "explosive device", "assault rifle", "ghost gun", "3d-printed gun",
        "silencer", "ammunition", "hand grenade", "molotov cocktail", "nerve agent",
    ),
}  # fmt: skip
"""Built-in topics. Lists of this kind are a coarse first net; a policy can replace any of them by its own."""

TermLists = dict[str, Annotated[tuple[str, ...], Strict(False)]]


class TopicsConfig(Config):
    """Parameters of the `topics` kind."""

    deny: Texts = Field(default=(), description="Topics that must not be touched.")
    allow: Texts = Field(default=(), description="If any are named, every other known topic is a hit.")
    topics: TermLists = Field(
        default_factory=dict, description="Own topics: name to words and phrases; replaces a built-in one of that name."
    )
    fold: bool = Field(default=True, description="See through look-alike letters, accents, zero-width characters.")

    @model_validator(mode="after")
    def _known(self) -> TopicsConfig:
        if not self.deny and not self.allow:
            raise ValueError("name topics in `deny`, `allow` or both")
        known = self.known()
        for field, names in (("deny", self.deny), ("allow", self.allow)):
            for name in names:
                if name not in known:
                    raise ValueError(f"{field}: unknown topic {name!r}; known: {', '.join(sorted(known))}")
        for name, terms in self.topics.items():
            if not terms or any(not term.strip() for term in terms):
                raise ValueError(f"topics.{name}: name at least one word, and no empty one")
        return self

    def known(self) -> dict[str, tuple[str, ...]]:
        """Every topic by name: the built-in ones, and those of the policy in their place or beside them."""
        return {**KNOWN_TOPICS, **self.topics}


class TopicsKind(Kind[TopicsConfig]):
    """Topics by telling words."""

    name = "topics"
    family = Family.LISTED
    description = "Topics that may or may not be touched, known by their words; own topics can be added."
    performance = PerformanceCharacteristics(
        PerformanceClass.FAST, 0.01, 0.1, 1.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = TopicsConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example({"deny": ["gambling"]}, hits=("Go to a Casino tonight",), passes=("Go to the cinema",)),
        Example(
            {"allow": ["gambling"]},
            hits=("cocaine and cigarettes",),
            passes=("the casino", "a walk in the park"),
        ),
        Example(
            {"deny": ["rivals"], "topics": {"rivals": ["globex", "initech"]}},
            hits=("Try Globex instead",),
            passes=("Try ours instead",),
        ),
    )

    def rules(self) -> tuple[Rule, ...]:
        """One rule a topic that must not be touched. A word that an allowed topic shares is no hit of another one."""
        config, known = self.config, self.config.known()
        allowed = {term.lower() for name in config.allow if name not in config.deny for term in known[name]}
        names = list(config.deny)
        if config.allow:
            names += [name for name in known if name not in config.allow]
        rules = []
        for name in dict.fromkeys(names):
            terms = [term for term in known[name] if name in config.deny or term.lower() not in allowed]
            patterns = dict.fromkeys(phrase_pattern(term, fold=config.fold, ignore_case=True) for term in terms)
            if not patterns:
                continue
            rule = Rule(
                id=name,
                pattern="|".join(patterns),
                ignore_case=True,
                fold=config.fold,
                not_after="unicode-word",
                not_before="unicode-word",
                placeholder="[TOPIC]",
                category=name,
            )
            rules.append(found_behind(rule))
        return tuple(rules)
