"""`manage.py rules …`: policy files and rule packs, looked at, brought in, published, signed, put to work.

Protects the rule that the command line has no way of its own: it reads files, calls the services that every other
caller uses, and says what happened. Exit status 0, 1 (a failure was found), 2 (usage).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails import docs
from guardrails.importers.gitleaks import Imported, import_gitleaks, is_gitleaks
from guardrails.importers.policy_file import read_policy_file
from guardrails.lint import GuardrailReport, LintReport, RuleReport, lint_document
from guardrails.policy import PolicyError


def counted(number: int, noun: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class Command(BaseCommand):
    help = "Look at, import, publish, sign and activate rules."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="verb", required=True, metavar="ACTION")
        lint = actions.add_parser("lint", help="compile a policy file or a gitleaks pack and say what it costs")
        lint.add_argument("file", type=Path, metavar="FILE")
        lint.add_argument("--json", action="store_true", help="the whole report as JSON")
        page = actions.add_parser("docs", help="the tables of docs/guardrails.md, from the code")
        page.add_argument("--write", type=Path, metavar="FILE", help="bring this page up to date")

    def handle(self, *args: object, verb: str, **options: object) -> None:
        getattr(self, f"do_{verb}")(**options)

    # -- verbs --------------------------------------------------------------------------------------------------

    def do_lint(self, *, file: Path, json: bool, **options: object) -> None:
        document, imported = self.read(file, name=file.stem)
        try:
            report = lint_document(document)
        except PolicyError as error:
            raise CommandError(f"{file}: {error}", returncode=1) from None
        if json:
            self.stdout.write(self.as_json(report, imported))
        else:
            self.show(report)
            self.list_notes(imported)
        if report.failures:
            raise CommandError(f"{file}: {counted(len(report.failures), 'example')} not as written", returncode=1)

    def do_docs(self, *, write: Path | None, **options: object) -> None:
        if write is None:
            for name, text in docs.SECTIONS.items():
                self.stdout.write(f"{docs.BEGIN.format(name)}\n{text()}\n{docs.END.format(name)}")
            return
        try:
            write.write_text(docs.filled_in(write.read_text("utf-8")), "utf-8")
        except OSError as error:
            raise CommandError(f"{write}: {error.strerror}", returncode=2) from None
        except ValueError as error:
            raise CommandError(f"{write}: {error}", returncode=1) from None

    # -- what they share ----------------------------------------------------------------------------------------

    def read(self, file: Path, *, name: str) -> tuple[Mapping[str, object], Imported | None]:
        """The policy document in a file; of a gitleaks pack, the one it becomes, with what could not be taken."""
        try:
            document = read_policy_file(file)
            if not is_gitleaks(document):
                return document, None
            imported = import_gitleaks(document, name=name)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}", returncode=2) from None
        except PolicyError as error:
            raise CommandError(f"{file}: {error}", returncode=1) from None
        return imported.document, imported

    def show(self, report: LintReport) -> None:
        self.stdout.write(f"policy {report.policy}")
        for guardrail in report.guardrails:
            self.show_guardrail(guardrail)
        for text, bound in report.bounds.items():
            self.stdout.write(f"a session holds, {text}: {bound}")
        for failure in report.failures:
            self.stderr.write(f"wrong: {failure}")

    def show_guardrail(self, guardrail: GuardrailReport) -> None:
        count = f", {counted(len(guardrail.rules), 'rule')}" if guardrail.rules else ""
        self.stdout.write(
            f"  {guardrail.name} ({guardrail.kind}): {guardrail.performance_class}, {guardrail.checkpoint}, "
            f"{guardrail.mode} {guardrail.action}{count}"
        )
        for rule in guardrail.rules:
            self.show_rule(rule)
        for remark in guardrail.remarks:
            self.stdout.write(f"    note: {remark}")

    def show_rule(self, rule: RuleReport) -> None:
        examples = ""
        if rule.examples:
            examples = f", examples {len(rule.examples) - len(rule.failures)} of {len(rule.examples)} right"
        self.stdout.write(f"    {rule.id}: holds at most {rule.holds:,} characters{examples}")
        if rule.trimmed:
            self.stdout.write(
                f"      runs as {rule.trimmed} (cut from its left: up to {rule.trimmed_width} characters)"
            )

    def list_notes(self, imported: Imported | None) -> None:
        if imported is None:
            return
        for note in imported.refused:
            self.stdout.write(f"not taken: {note}")
        for note in imported.changed:
            self.stdout.write(f"taken without: {note}")

    def as_json(self, report: LintReport, imported: Imported | None) -> str:
        found: dict[str, object] = asdict(report)
        found["failures"] = list(report.failures)
        if imported is not None:
            found["not_taken"] = [str(note) for note in imported.refused]
            found["taken_without"] = [str(note) for note in imported.changed]
        return json.dumps(found, indent=2)
