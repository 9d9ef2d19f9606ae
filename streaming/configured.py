"""The providers that the environment configures, as they may be shown: without keys, passwords or queries.

Exists so that an operator can see what is set up, and what is wrong with it, without looking at the environment, which
holds secrets. Protects the rule that none of them is ever shown: an address is put together again from its harmless
parts, nothing is cut out of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.conf import settings

from streaming import breakers
from streaming.providers import base
from streaming.providers.http import HttpProvider
from streaming.system_checks import check_fallbacks


@dataclass(frozen=True, slots=True)
class Shown:
    """One provider. ``limits``: seconds to connect, between two events, for the whole answer; None: it asks nobody.

    ``problem``: what is wrong with its settings, empty for nothing; ``offered`` is whether it is offered all the same.
    ``circuit`` is the state of its breaker. ``fallback``: its place among the fallbacks, 0 for none.
    """

    name: str
    label: str = ""
    scripted: bool = False
    offered: bool = True
    models: Sequence[str] = ()
    default_model: str = ""
    address: str = ""
    key: str = ""
    limits: base.TimeLimits | None = None
    circuit: str = "closed"
    problem: str = ""
    fallback: int = 0

    @property
    def closed(self) -> bool:
        """Is it asked as usual?"""
        return self.circuit == "closed"


def shown(env: Mapping[str, str] | None = None) -> list[Shown]:
    """All that are configured, well or badly, by name; the scripted one is the last. Asks the store once."""
    found, wrong = base.configured(os.environ if env is None else env)
    states = breakers.states_now([_circuit(provider) for provider in found.values()])
    made = [_shown(provider, states.get(_circuit(provider), "closed")) for provider in found.values()]
    made += [Shown(name, offered=False, problem=problem, fallback=_place(name)) for name, problem in wrong.items()]
    return sorted(made, key=lambda one: (one.scripted, one.name))


def fallback_problems() -> list[str]:
    """What is wrong with the list of fallbacks."""
    return [message.msg for message in check_fallbacks(None)]


def harmless(url: str) -> str:
    """Scheme, host, port and path of an address; without what may be a secret. In words where it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "not an address"
    if parts.scheme not in ("http", "https") or not host:
        return "not an http(s) address"
    host = f"[{host}]" if ":" in host else host
    left_out = " (and a part that is not shown)" if parts.username or parts.password or parts.query else ""
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}{left_out}"


def _shown(provider: base.Provider, circuit: str) -> Shown:
    over_http = provider if isinstance(provider, HttpProvider) else None
    return Shown(
        name=provider.name,
        label=provider.label,
        scripted=provider.scripted,
        models=provider.models,
        default_model=provider.default_model,
        address=harmless(over_http.base_url) if over_http else "",
        key="" if over_http is None else "set" if over_http.has_key else "none",
        limits=over_http.limits if over_http else None,
        circuit=circuit.replace("_", " "),
        problem=provider.problem(),
        fallback=_place(provider.name),
    )


def _circuit(provider: base.Provider) -> str:
    return breakers.PROVIDER + (provider.circuit or provider.name)


def _place(name: str) -> int:
    named: list[str] = settings.SLUICEGATE_FALLBACKS
    return named.index(name) + 1 if name in named else 0
