"""`manage.py create_api_key NAME`: makes a key and prints it, the only time that it can be seen.

Exit status 0, 1 (refused), 2 (usage).
"""

from __future__ import annotations

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails.models import Scope
from guardrails.services import Refused, create_api_key

DEFAULT_SCOPES = [Scope.CHECK.value, Scope.STREAM.value]


class Command(BaseCommand):
    help = "Make an API key and print it once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME")
        parser.add_argument(
            "--scope",
            action="append",
            choices=[*Scope.values, "all"],
            help=f"what it opens; again for more (default: {', '.join(DEFAULT_SCOPES)})",
        )
        parser.add_argument("--policy", default="", metavar="NAME", help="policy of calls that name none (basic)")
        parser.add_argument(
            "--origin", action="append", default=[], metavar="URL", help="a browser origin that may use it"
        )

    def handle(
        self, *args: object, name: str, scope: list[str] | None, policy: str, origin: list[str], **options: object
    ) -> None:
        scopes = scope or DEFAULT_SCOPES
        try:
            _, plaintext = create_api_key(
                name=name, scopes=Scope.values if "all" in scopes else scopes, policy=policy, origins=origin
            )
        except Refused as error:
            raise CommandError(str(error), returncode=1) from None
        self.stderr.write("This key is not shown again:")
        self.stdout.write(plaintext)
