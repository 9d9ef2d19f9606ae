"""`manage.py gate FILE < cases.jsonl > results.jsonl`: the gate alone, for tests, tuning and replay.

Protects the rule that a policy file can be tried before it is published, on the same gate that sessions use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails.findings import Mode
from guardrails.importers.policy_file import read_policy_file
from guardrails.performance import Checkpoint
from guardrails.policy import Guardrail, Policy, PolicyError, compile_policy, normalise
from streaming.core.cases import run_lines


def immediate_only(document: Mapping[str, object]) -> tuple[Policy, tuple[Guardrail, ...]]:
    """The policy with its IMMEDIATE guardrails only, and those left out. Raises ``PolicyError``."""
    written_out = normalise(document)
    policy = compile_policy(written_out)
    left_out = tuple(guardrail for guardrail in policy.guardrails if guardrail.checkpoint is not Checkpoint.IMMEDIATE)
    if not left_out:
        return policy, ()
    names = {guardrail.name for guardrail in left_out}
    entries = cast("list[dict[str, object]]", written_out["guardrails"])
    kept = [entry for entry in entries if entry["name"] not in names]
    return compile_policy({**written_out, "guardrails": kept}), left_out


class Command(BaseCommand):
    help = "Run the gate over recorded cases: JSON lines on standard input, results on standard output."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("policy_file", metavar="POLICY_FILE", type=Path, help="policy file, JSON or TOML")

    def handle(self, *args: object, policy_file: Path, **options: object) -> None:
        try:
            policy, left_out = immediate_only(read_policy_file(policy_file))
        except OSError as error:
            raise CommandError(f"{policy_file}: {error.strerror}", returncode=2) from None
        except PolicyError as error:
            raise CommandError(f"{policy_file}: {error}", returncode=1) from None
        for guardrail in left_out:
            if guardrail.mode is not Mode.DISABLED:
                self.stderr.write(f"not run: {guardrail.name} ({guardrail.kind}, {guardrail.checkpoint.value})")
        for result in run_lines(policy, cast(Iterable[bytes], getattr(sys.stdin, "buffer", sys.stdin))):
            self.stdout.write(json.dumps(result))
            self.stdout.flush()
