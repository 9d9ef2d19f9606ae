"""`manage.py shadow POLICY [VERSION | --off]`: what a second version beside the active one would have changed.

Stands beside `rules` because what it tells comes from the sessions. Exit status 0, 1 (refused), 2 (usage).
"""

from __future__ import annotations

import json

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails import services
from guardrails.loading import PolicyUnavailable
from guardrails.models import Policy, PolicyVersion
from streaming.shadow.record import COMPARISON_WORDS
from streaming.shadow.report import Report, report


class Command(BaseCommand):
    help = "Show the difference between a policy's active version and its shadow; run a version as shadow, or end it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("policy", metavar="POLICY")
        verb = parser.add_mutually_exclusive_group()
        verb.add_argument("version", type=int, nargs="?", metavar="VERSION", help="run this version as shadow")
        verb.add_argument("--off", action="store_true", help="end the shadow")
        parser.add_argument("--note", default="", help="why, for the record")
        parser.add_argument(
            "--without-paid", action="store_true", help="ask none of its guardrails that go over the network"
        )
        parser.add_argument("--json", action="store_true", help="the report as JSON")

    def handle(
        self,
        *args: object,
        policy: str,
        version: int | None,
        off: bool,
        note: str,
        without_paid: bool,
        json: bool,
        **_: object,
    ) -> None:
        found = (
            Policy.objects.filter(name=policy)
            .select_related("active_version__policy", "shadow_version__policy")
            .first()
        )
        if found is None:
            raise CommandError(f"there is no policy {policy!r}", returncode=1)
        try:
            if version is not None:
                self.begin(found, version, note, asks_paid=not without_paid)
            elif off:
                ended = services.clear_shadow(policy=found, note=note)
                self.stdout.write(f"{policy}: {'the shadow has ended' if ended else 'there is no shadow'}")
                if ended and found.shadow_version:
                    self.note(found.shadow_version, "is not the shadow any more")
            else:
                self.tell(found, as_json=json)
        except (services.Refused, PolicyUnavailable) as error:
            raise CommandError(str(error), returncode=1) from None

    def begin(self, policy: Policy, number: int, note: str, *, asks_paid: bool) -> None:
        version = policy.versions.select_related("policy").filter(number=number).first()
        if version is None:
            raise CommandError(f"{policy.name}: there is no version {number}", returncode=1)
        change = services.set_shadow(version=version, note=note, asks_paid=asks_paid)
        state = "runs as shadow" if change else "is the shadow already"
        self.stdout.write(f"{policy.name}: version {number} {state}")
        if change:
            self.note(version, "runs as shadow")

    def note(self, version: PolicyVersion, done: str) -> None:
        """Keep a step in the history that the admin shows."""
        services.note_command_step(row=version, done=f"{version} {done}")

    def tell(self, policy: Policy, *, as_json: bool) -> None:
        found = report(policy)
        if as_json:
            self.stdout.write(json.dumps(found.as_dict() if found else None, default=str, indent=2))
        elif found is None:
            self.stdout.write(f"{policy.name}: no shadow has ever run")
        else:
            self.show(found)

    def show(self, found: Report) -> None:
        ended = f", ended {found.ended_at:%Y-%m-%d %H:%M}" if found.ended_at else ""
        active = f" beside version {found.active}" if found.active else ""
        self.stdout.write(
            f"{found.policy}: version {found.shadow}{active}, since {found.began_at:%Y-%m-%d %H:%M} UTC{ended}"
        )
        if found.error and not found.ended_at:
            self.stderr.write(f"the shadow does not run: {found.error}")
        if not found.paid:
            self.stdout.write("  guardrails that go over the network are not asked")
        several = f" under versions {', '.join(map(str, found.actives))}" if len(found.actives) > 1 else ""
        self.stdout.write(f"  {found.sessions:,} sessions{several}")
        for _, words, number in found.lines:
            self.stdout.write(f"  {number:>9,}  {words}")
        if found.without:
            self.stdout.write(f"  {found.without:>9,}  Under way, or lost")
        if found.guardrails:
            over = f" (newest {found.looked:,} sessions)" if found.looked < found.sessions else ""
            self.stdout.write(f"hits by guardrail, active and shadow{over}")
        for line in found.guardrails:
            beside = "not run" if line.not_run else f"{line.shadow_hits:,} in {line.shadow_sessions:,}"
            self.stdout.write(f"  {line.name}: {line.active_hits:,} in {line.active_sessions:,}, {beside}")
        for name, examples in found.examples.items():
            for example in examples:
                why = f" ({example.why})" if example.why else ""
                self.stdout.write(f"{COMPARISON_WORDS[name]}: {example.session_id}{why}")
