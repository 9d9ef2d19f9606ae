"""Run as ``python -m tests.stack.prepare``: tables, policies, the rollout flag, API keys; prints the keys as JSON."""

from __future__ import annotations

import json
import sys

import django


def main() -> dict[str, str]:
    """A key for each policy's tests, and one of somebody else."""
    django.setup()
    from guardrails.bootstrap import prepare_database
    from guardrails.models import Scope
    from guardrails.services import create_api_key
    from streaming.rollout import ensure_flag

    prepare_database()
    ensure_flag(everyone=True)
    limits = {"calls_per_minute": 100_000, "updates_per_second": 10_000}
    return {
        name: create_api_key(name=name, scopes=list(Scope), policy="demo", **limits)[1] for name in ("owner", "other")
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main()))
