"""Run as ``python -m tests.stack.prepare``: tables, policies, the rollout flag, API keys; prints the keys as JSON."""

from __future__ import annotations

import json
import sys

import django


def main() -> dict[str, str]:
    """The tests' own key, one of somebody else, and one that may call three times a minute."""
    django.setup()
    from guardrails.bootstrap import prepare_database
    from guardrails.models import Scope
    from guardrails.services import create_api_key
    from streaming.rollout import ensure_flag

    prepare_database()
    ensure_flag(everyone=True)
    made = {}
    for name, calls in (("owner", 100_000), ("other", 100_000), ("slow", 3)):
        limits = {"calls_per_minute": calls, "updates_per_second": 10_000}
        made[name] = create_api_key(name=name, scopes=list(Scope), policy="demo", **limits)[1]
    return made


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()))
