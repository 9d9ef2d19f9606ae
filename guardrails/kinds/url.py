"""Where links may lead: the `url` kind.

Protects the rule that a domain is judged as a browser would resolve it: user names before an ``@``, ports, percent
escapes, back-slashes, soft hyphens and other alphabets do not disguise the host. Text is not folded here, because a
look-alike domain is another domain. The blocklist is asked first, then the allowlist.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import unquote

from pydantic import Field, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.patterns.rule import Candidate, Rule
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

_LETTERS = r"\w%\u00ad\u200b-\u200d\u2060\u00c0-\u024f\u0370-\u052f"
_DOT = "[.\u3002\uff0e\uff61]"
_LABEL = rf"[{_LETTERS}][{_LETTERS}-]{{0,62}}"
_DOTTED = rf"{_LABEL}(?:{_DOT}{_LABEL}){{1,8}}"
_ANY_HOST = (
    rf"(?:{_LABEL}(?:{_DOT}{_LABEL}){{0,8}}|\[[0-9A-Fa-f:.]{{2,45}}\]|[\u2e80-\uffdc][^\s/?#\\:@<>\"']{{0,252}})"
)
_TAIL = r"(?::[0-9]{1,5})?(?:[/?#\\][A-Za-z0-9._~:/?#@!$&'()*+,;=%\[\]-]*|\.{0,64})"
_URL = (
    rf"(?:(?:https?|ftp|wss?):[/\\]{{1,4}}(?:[^\s/?#\\@]{{1,128}}@)?{_ANY_HOST}"
    rf"|[/\\]{{2}}{_DOTTED}|www[0-9]?\.{_DOTTED}){_TAIL}"
)
_AUTHORITY = re.compile(r"(?:[A-Za-z]+:)?[/\\]{0,4}([^/?#\\]*)")
_IGNORED = str.maketrans("", "", "\u00ad\u200b\u200c\u200d\u2060")
_ASCII_HOST = re.compile(r"[a-z0-9_.:\[\]-]+")


def host_of(url: str) -> str:
    """The host that a browser would ask, lower case, in ASCII (punycode) where it can be written so."""
    found = _AUTHORITY.match(url)
    return normal_host(found[1]) if found else ""


@functools.lru_cache(maxsize=4096)
def normal_host(authority: str) -> str:
    """The host of ``user:password@host:port`` in its normal form."""
    host = unquote(authority.rpartition("@")[2]).translate(_IGNORED)
    if not host.startswith("["):
        host = re.sub(r":[0-9]*$", "", host)
    host = host.lower().strip(".\u3002\uff0e\uff61")
    if not host.isascii():
        try:
            host = host.encode("idna").decode().lower()
        except UnicodeError:
            host = re.sub(_DOT, ".", host)
    return host


@dataclass(frozen=True, slots=True)
class Leads:
    """Accepts (as a hit) a link to a blocked host, or to one that an allowlist leaves out."""

    allowed: frozenset[str]
    blocked: frozenset[str]
    subdomains: bool

    def __call__(self, candidate: Candidate) -> bool:
        """Whether the link is one to be stopped."""
        host = host_of(candidate.match)
        if self._listed(host, self.blocked):
            return True
        return bool(self.allowed) and not self._listed(host, self.allowed)

    def _listed(self, host: str, domains: frozenset[str]) -> bool:
        if host in domains:
            return True
        if not self.subdomains:
            return False
        parts = host.split(".")
        return any(".".join(parts[at:]) in domains for at in range(1, len(parts)))


class UrlConfig(Config):
    """Parameters of the `url` kind."""

    allowed_domains: Texts = Field(default=(), description="If any are named, links may lead to these only.")
    blocked_domains: Texts = Field(default=(), description="Links must not lead to these; asked first.")
    subdomains: bool = Field(default=True, description="A domain stands for its subdomains as well.")

    @field_validator("allowed_domains", "blocked_domains")
    @classmethod
    def _normal(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        out = []
        for domain in value:
            host = normal_host(domain.strip().removeprefix("*."))
            if not _ASCII_HOST.fullmatch(host) or "@" in domain:
                raise ValueError(f"{domain!r} is not a domain name (no scheme, no path)")
            out.append(host)
        return tuple(dict.fromkeys(out))

    @model_validator(mode="after")
    def _something(self) -> UrlConfig:
        if not self.allowed_domains and not self.blocked_domains:
            raise ValueError("name `allowed_domains`, `blocked_domains` or both")
        return self


def _spellings(domain: str) -> tuple[str, ...]:
    """A domain as it may stand in text: in ASCII, and in its own alphabet."""
    try:
        native = domain.encode().decode("idna")
    except UnicodeError:
        native = domain
    return tuple(dict.fromkeys((domain, native)))


class UrlKind(Kind[UrlConfig]):
    """Allowed and blocked link targets."""

    name = "url"
    family = Family.LISTED
    description = "Domains that links may or may not lead to, subdomains included; the blocklist is asked first."
    performance = PerformanceCharacteristics(
        PerformanceClass.FAST, 0.02, 0.5, 5.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = UrlConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {"blocked_domains": ["evil.example"]},
            hits=("see https://login.evil.example/x.", "at evil.example, today", "https://good.example@evil.example"),
            passes=("https://evil.example.org/", "notevil.example", "https://good.example/"),
        ),
        Example(
            {"allowed_domains": ["good.example"]},
            hits=("https://other.example", "//other.example/x", "www.other.example", "http://localhost"),
            passes=("https://good.example/path?q=1", "https://docs.good.example.", "readme.txt"),
        ),
        Example(
            {"blocked_domains": ["evil.example"], "subdomains": False},
            hits=("https://evil.example",),
            passes=("https://login.evil.example", "login.evil.example"),
        ),
    )

    def rules(self) -> tuple[Rule, ...]:
        """`link`: anything with a scheme or ``www.``; `domain`: a blocked domain that is named without."""
        config = self.config
        leads = Leads(frozenset(config.allowed_domains), frozenset(config.blocked_domains), config.subdomains)
        link = Rule(
            id="link",
            pattern=_URL,
            not_after="A-Za-z0-9",
            not_before=rf"{_LETTERS}.@-",
            validator=leads,
            ignore_case=True,
            fold=False,
            placeholder="[URL]",
            category="url",
        )
        if not config.blocked_domains:
            return (link,)
        names = "|".join(re.escape(name) for domain in config.blocked_domains for name in _spellings(domain))
        bare = f"(?:{names})"
        if config.subdomains:
            bare = rf"(?:{bare}|(?:[\w-]{{1,63}}\.){{1,5}}{bare})"
        domain = Rule(
            id="domain",
            pattern=bare + _TAIL,
            not_after=rf"{_LETTERS}./\\-",
            not_before=rf"{_LETTERS}.@-",
            validator=leads,
            ignore_case=True,
            fold=False,
            placeholder="[URL]",
            category="url",
        )
        return (link, domain)
