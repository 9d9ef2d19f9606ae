"""`manage.py rules …`: policy files and rule packs, looked at, brought in, published, signed, put to work.

Protects the rule that the command line has no way of its own: it reads files, calls the services that every other
caller uses, and says what happened. Exit status 0, 1 (a failure was found), 2 (usage).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, ProgrammingError

from guardrails import docs, selectors, services
from guardrails.bundle import BundleRefused, verify_bundle
from guardrails.diff import changes
from guardrails.importers.gitleaks import Imported, import_gitleaks, is_gitleaks
from guardrails.importers.policy_file import read_policy_file
from guardrails.keys import key_set
from guardrails.keys import root as root_key
from guardrails.lint import GuardrailReport, LintReport, RuleReport, lint_document
from guardrails.loading import PolicyUnavailable
from guardrails.models import Activation, Policy, PolicyVersion, Rollout
from guardrails.policy import PolicyError
from guardrails.publication import report_lines
from guardrails.signing import KeyRefused

VERSION_VERBS = {
    "publish": "freeze a policy's draft as its next version",
    "sign": "sign a version (default: the newest)",
    "activate": "put a signed version to work (default: the newest)",
    "rollback": "put an older version to work (default: the newest older one that was active)",
    "export": "write a version as a policy file (default: the active one)",
}


def counted(number: int, noun: str) -> str:
    """``1 rule``, ``2 rules``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bundle_in(text: str) -> str:
    """The bundle of an answer of ``/v1/rules``; what is no JSON object is taken for the bundle itself."""
    if not text.lstrip().startswith("{"):
        return text.strip()
    found = json.loads(text)
    bundle = found.get("bundle")
    if not isinstance(bundle, str):
        raise BundleRefused("malformed", "it has no “bundle”")
    return bundle


def add_by(parser: CommandParser) -> None:
    """Who is put on record; without it nobody is."""
    parser.add_argument("--by", metavar="USERNAME", help="on whose behalf; it is recorded, and must be allowed to")


class Command(BaseCommand):
    help = "Look at, import, publish, sign and activate rules."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="verb", required=True, metavar="ACTION")
        lint = actions.add_parser("lint", help="compile a policy file or a gitleaks pack and say what it costs")
        lint.add_argument("file", type=Path, metavar="FILE")
        lint.add_argument("--json", action="store_true", help="the whole report as JSON")
        bring = actions.add_parser("import", help="bring a policy file or a gitleaks pack in as a policy's draft")
        bring.add_argument("file", type=Path, metavar="FILE")
        bring.add_argument("--as", dest="name", metavar="NAME", help="name of the policy (default: the file's)")
        bring.add_argument("--publish", action="store_true", help="freeze the draft as the next version")
        bring.add_argument("--sign", action="store_true", help="sign that version (needs --publish)")
        bring.add_argument("--activate", action="store_true", help="put it to work (needs --sign)")
        add_by(bring)
        for verb, about in VERSION_VERBS.items():
            action = actions.add_parser(verb, help=about)
            action.add_argument("policy", metavar="POLICY")
            if verb != "publish":
                action.add_argument("version", type=int, nargs="?", metavar="VERSION")
            if verb != "export":
                add_by(action)
            if verb in ("activate", "rollback"):
                action.add_argument("--note", default="", help="why; it is recorded")
            if verb == "activate":
                action.add_argument("--serial", type=int, default=0, metavar="N", help="at least N, after a restore")
        bundle = actions.add_parser(
            "bundle", help="the signed rules for clients, as /v1/rules gives them; or verify some"
        )
        bundle.add_argument("policy", metavar="POLICY")
        bundle.add_argument("--verify", type=Path, metavar="FILE", help="verify this answer (or bare bundle) instead")
        bundle.add_argument("--keys", type=Path, metavar="FILE", help="with --verify: the JWK set (default: our own)")
        bundle.add_argument(
            "--root",
            metavar="X",
            help="with --verify: the pinned public key, as --root=X (default: our root)",
        )
        bundle.add_argument("--seen", type=int, default=0, metavar="SERIAL", help="with --verify: refuse lower serials")
        bundle.add_argument("--keys-seen", type=int, default=0, metavar="SERIAL", help="the same for the key set")
        rollout = actions.add_parser("rollout", help="run a signed version for a part of the conversations")
        rollout.add_argument("policy", metavar="POLICY")
        rollout.add_argument("version", type=int, nargs="?", metavar="VERSION", help="default: the newest")
        rollout.add_argument(
            "--percent", type=float, help="share of the conversations; of one that runs, the new share"
        )
        rollout.add_argument("--group", action="append", default=[], metavar="NAME", help="all members run it")
        rollout.add_argument("--max-errors", type=float, metavar="SHARE", help="roll back above this share (0 to 1)")
        rollout.add_argument("--max-would-have", type=float, metavar="SHARE", help="the same, of what MONITOR would do")
        rollout.add_argument("--sample", type=int, default=50, help="sessions before limits count (50)")
        rollout.add_argument("--end", action="store_true", help="end it: new sessions run the active version")
        rollout.add_argument("--note", default="", help="why; it is recorded")
        add_by(rollout)
        diff = actions.add_parser("diff", help="what changed between two versions, rule by rule")
        diff.add_argument("policy", metavar="POLICY")
        diff.add_argument("old", type=int, metavar="OLD")
        diff.add_argument("new", type=int, metavar="NEW")
        actions.add_parser("list", help="policies, their versions and what is active")
        page = actions.add_parser("docs", help="the tables of docs/guardrails.md, from the code")
        page.add_argument("--write", type=Path, metavar="FILE", help="bring this page up to date")

    def handle(self, *args: object, verb: str, **options: object) -> None:
        try:
            getattr(self, f"do_{verb}")(**options)
        except (PolicyError, services.Refused, KeyRefused, PolicyUnavailable, selectors.NoClientRules) as error:
            raise CommandError(str(error), returncode=1) from None
        except (OperationalError, ProgrammingError) as error:
            raise CommandError(f"the database cannot be used (manage.py migrate?): {error}", returncode=1) from None

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

    def do_import(
        self,
        *,
        file: Path,
        name: str | None,
        publish: bool,
        sign: bool,
        activate: bool,
        by: str | None,
        **_: object,
    ) -> None:
        if (sign and not publish) or (activate and not sign):
            raise CommandError("--sign needs --publish, and --activate needs --sign", returncode=2)
        document, imported = self.read(file, name=name or file.stem)
        author = self.person(by, "change_policy")
        policy = services.save_draft(document={**document, "policy": name} if name else document, by=author)
        held = cast("list[dict[str, object]]", (policy.draft or {})["guardrails"])
        rules = f", {counted(imported.rules, 'rule')}" if imported else ""
        self.stdout.write(f"{policy.name}: draft with {counted(len(held), 'guardrail')}{rules}")
        self.note(policy, f"Draft saved from {file.name}", author)
        self.list_notes(imported)
        if not publish:
            return
        version = self.published(policy, by)
        if sign:
            self.signed(version, by)
        if activate:
            self.activated(version, by)

    def do_publish(self, *, policy: str, by: str | None, **_: object) -> None:
        self.published(self.policy(policy), by)

    def do_sign(self, *, policy: str, version: int | None, by: str | None, **_: object) -> None:
        self.signed(self.version(policy, version), by)

    def do_activate(
        self, *, policy: str, version: int | None, by: str | None, note: str, serial: int, **_: object
    ) -> None:
        self.activated(self.version(policy, version), by, note, serial)

    def do_rollback(self, *, policy: str, version: int | None, by: str | None, note: str, **_: object) -> None:
        found, operator = self.policy(policy), self.person(by, "activate_policyversion")
        before = found.active_version
        self.now_active(services.rollback(policy=found, number=version, by=operator, note=note), operator, before)

    def do_rollout(
        self, *, policy: str, version: int | None, percent: float | None, end: bool, by: str | None, **more: Any
    ) -> None:
        """Begin one, give it another share, or end it."""
        found, operator = self.policy(policy), self.person(by, "activate_policyversion")
        if end:
            ended = services.end_rollout(policy=found, by=operator, why=more["note"])
            if ended is None:
                raise CommandError(f"no version of {policy} is being rolled out", returncode=1)
            self.stdout.write(f"{policy}: the rollout of version {ended.activation.version.number} has ended")
            self.note_rollout(ended, "is not rolled out any more", operator)
            return
        if found.rollout is not None and percent is not None and version is None and not more["group"]:
            changed = services.change_rollout(policy=found, percent=percent, by=operator)
            self.stdout.write(f"{policy}: version {changed.activation.version.number} now runs for {percent:g} %")
            self.note_rollout(changed, f"is rolled out to {percent:g} % of the conversations from now on", operator)
            return
        begun = services.begin_rollout(
            version=self.version(policy, version),
            percent=percent or 0,
            groups=more["group"],
            max_errors=more["max_errors"],
            max_would_have=more["max_would_have"],
            sample=more["sample"],
            by=operator,
            note=more["note"],
        )
        groups = f" and the groups {', '.join(begun.groups)}" if begun.groups else ""
        self.stdout.write(f"{policy}: version {begun.activation.version.number} runs for {begun.percent:g} %{groups}")
        self.note_rollout(begun, f"is rolled out to {begun.percent:g} % of the conversations{groups}", operator)

    def do_diff(self, *, policy: str, old: int, new: int, **_: object) -> None:
        before, after = self.version(policy, old), self.version(policy, new)
        for change in changes(before.document, after.document):
            self.stdout.write(str(change))

    def do_list(self, **_: object) -> None:
        for policy in Policy.objects.select_related("active_version", "rollout__activation").prefetch_related(
            "versions"
        ):
            draft = ", has a draft" if policy.draft is not None else ""
            self.stdout.write(f"{policy.name}{draft}")
            for version in policy.versions.all():
                marks = ["signed" if version.signature else "unsigned"]
                marks += ["active"] if policy.active_version_id == version.pk else []
                if policy.rollout is not None and policy.rollout.activation.version_id == version.pk:
                    marks.append(f"rolled out to {policy.rollout.percent:g} %")
                marks += ["shadow"] if policy.shadow_version_id == version.pk else []
                self.stdout.write(f"  {version.number}  {version.digest}  {', '.join(marks)}")

    def do_export(self, *, policy: str, version: int | None, **_: object) -> None:
        """The document of a version as a policy file: of the one named, else the active one, else the newest."""
        found = self.policy(policy)
        chosen = found.active_version if version is None and found.active_version else self.version(policy, version)
        self.stdout.write(json.dumps(chosen.document, indent=2, ensure_ascii=False))

    def do_bundle(
        self,
        *,
        policy: str,
        verify: Path | None,
        keys: Path | None,
        root: str | None,
        seen: int,
        keys_seen: int,
        **_: object,
    ) -> None:
        if verify is None:
            if keys or root or seen or keys_seen:
                raise CommandError("--keys, --root, --seen and --keys-seen need --verify", returncode=2)
            found = selectors.client_bundle(policy)
            self.stdout.write(json.dumps(asdict(found), indent=2))
            return
        place = (settings.SLUICEGATE_ISSUER, policy, "")
        try:
            verified = verify_bundle(
                bundle_in(self.text_of(verify)),
                json.loads(self.text_of(keys)) if keys else key_set(),
                root=root or root_key().x,
                now=time.time(),
                issuer=settings.SLUICEGATE_ISSUER,
                policy=policy,
                seen={place: seen},
                keys_seen=keys_seen,
            )
        except BundleRefused as error:
            raise CommandError(f"{verify}: {error.reason}: {error}", returncode=1) from None
        except ValueError as error:
            raise CommandError(f"{keys or verify}: not JSON: {error}", returncode=2) from None
        statement = verified.statement
        until = datetime.fromtimestamp(statement.exp, UTC).isoformat(timespec="seconds")
        self.stdout.write(
            f"{policy}: version {statement.version}, serial {statement.serial}, good until {until}, "
            f"{statement.digest}, keys of serial {verified.keys_serial}"
        )

    def text_of(self, file: Path) -> str:
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{file}: cannot be read: {error}", returncode=2) from None

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

    # -- versions -----------------------------------------------------------------------------------------------

    def policy(self, name: str) -> Policy:
        found = Policy.objects.filter(name=name).first()
        if found is None:
            raise CommandError(f"there is no policy {name!r}", returncode=1)
        return found

    def version(self, name: str, number: int | None) -> PolicyVersion:
        """A version by number, else the newest."""
        versions = self.policy(name).versions.order_by("-number")
        found = versions.first() if number is None else versions.filter(number=number).first()
        if found is None:
            wanted = "no version" if number is None else f"no version {number}"
            draft = "; its draft is not published" if number is None and self.policy(name).draft is not None else ""
            raise CommandError(f"{name}: there is {wanted}{draft}", returncode=1)
        return found

    def person(self, name: str | None, permission: str) -> User | None:
        """Who is to be on record. The command line needs no permission; whoever is named must have it."""
        if name is None:
            return None
        user = User.objects.filter(username=name, is_active=True).first()
        if user is None:
            raise CommandError(f"there is no user {name!r}", returncode=1)
        if not user.has_perm(f"guardrails.{permission}"):
            raise CommandError(f"{name} may not do that (guardrails.{permission})", returncode=1)
        return user

    def published(self, policy: Policy, by: str | None) -> PolicyVersion:
        publisher = self.person(by, "publish_policy")
        version = services.publish(policy=policy, by=publisher)
        for row in (policy, version):
            self.note(row, f"{version} published", publisher)
        self.stdout.write(f"{policy.name}: published version {version.number}, {version.digest}")
        for line in report_lines(version.publication.report):
            self.stdout.write(f"  {line}")
        return version

    def signed(self, version: PolicyVersion, by: str | None) -> None:
        signer = self.person(by, "sign_policyversion")
        services.sign(version=version, by=signer)
        self.note(version, f"{version} signed", signer)
        self.stdout.write(f"{version.policy.name}: signed version {version.number}")

    def activated(self, version: PolicyVersion, by: str | None, note: str = "", serial: int = 0) -> None:
        operator = self.person(by, "activate_policyversion")
        self.now_active(services.activate(version=version, by=operator, note=note, serial=serial), operator)

    def now_active(self, activation: Activation, by: User | None, before: PolicyVersion | None = None) -> None:
        """Say it, and keep it; ``before``: the version that was rolled back from."""
        version = activation.version
        back = f": rolled back from version {before.number}" if before else ""
        self.note(version, f"{version} activated{back}", by)
        self.stdout.write(f"{version.policy.name}: version {version.number} is active (serial {activation.serial})")

    def note(self, row: Policy | PolicyVersion | Rollout, done: str, by: User | None) -> None:
        """Keep a step in the history that the admin shows."""
        services.note_command_step(row=row, done=done, by=by)

    def note_rollout(self, rollout: Rollout, done: str, by: User | None) -> None:
        """In the history of the rollout and of its version."""
        for row in (rollout, rollout.activation.version):
            self.note(row, f"{rollout.activation.version} {done}", by)

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
        more = ""
        if rule.holds_with_ignorables > rule.holds:
            more = f" ({rule.holds_with_ignorables:,} with ignorable ones between them)"
        self.stdout.write(f"    {rule.id}: holds at most {rule.holds:,} characters{more}{examples}")
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
