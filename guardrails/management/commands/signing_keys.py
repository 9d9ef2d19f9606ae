"""`manage.py signing_keys …`: who is believed. Keys are vouched for and revoked with the root, wherever that is kept.

Works on files alone, without a database, so that it can run on the machine that has the root's private key and nothing
else. Exit status 0, 1 (refused, or a listed key is not believed), 2 (usage).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails import keyring
from guardrails.keys import KeyringFile, keyring_file, read_keyring, write_keyring
from guardrails.signing import KeyRefused, Purpose, SigningKey

PURPOSES = [purpose.name.lower() for purpose in Purpose]


class Command(BaseCommand):
    help = "Vouch for signing keys, revoke them, and list who is believed."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="verb", required=True, metavar="ACTION")
        vouch = actions.add_parser("vouch", help="add a key to the keyring, signed by a version key that is believed")
        vouch.add_argument("file", type=Path, metavar="FILE", help="the private key (PEM); its public part is added")
        vouch.add_argument("--purpose", choices=PURPOSES, required=True)
        vouch.add_argument("--by", type=Path, required=True, metavar="FILE", help="the root, or a version key after it")
        revoke = actions.add_parser("revoke", help="list a key as revoked, signed by the root")
        revoke.add_argument("kid", metavar="KID")
        revoke.add_argument("--by", type=Path, required=True, metavar="FILE", help="the root's private key")
        revoke.add_argument("--reason", required=True)
        listed = actions.add_parser("list", help="the keys, and which of them are believed")
        for action in (vouch, revoke, listed):
            action.add_argument("--keyring", type=Path, metavar="FILE", help="default: the one that settings name")

    def handle(self, *args: object, verb: str, keyring: Path | None, **options: object) -> None:
        try:
            getattr(self, f"do_{verb}")(path=keyring or keyring_file(), **options)
        except KeyRefused as error:
            raise CommandError(str(error), returncode=1) from None

    def do_vouch(self, *, path: Path, file: Path, purpose: str, by: Path, **_: object) -> None:
        """The first voucher of a new keyring says who its root is."""
        voucher = self.key(by, Purpose.VERSION)
        ring = read_keyring(path) or KeyringFile(voucher.public.x, (keyring.entry(voucher.public),))
        known = keyring.believed(ring.keys, keyring.root_key(ring.root)).keys.get(voucher.public.kid)
        if known is None or known.revoked:
            raise CommandError(f"{by} is not a version key that the keyring believes", returncode=1)
        public = self.key(file, Purpose[purpose.upper()]).public
        if any(member.kid == public.kid for member in ring.keys):
            raise CommandError(f"{public.kid} is in the keyring already", returncode=1)
        if any(member.x == public.x for member in ring.keys):
            raise CommandError(f"{file} serves another purpose already; make a key for each", returncode=1)
        write_keyring(path, replace(ring, keys=(*ring.keys, keyring.entry(public, voucher))))
        self.stdout.write(f"{public.kid} vouched for by {voucher.public.kid}")

    def do_revoke(self, *, path: Path, kid: str, by: Path, reason: str, **_: object) -> None:
        """The root alone revokes: a stolen version key must not be able to take the others away."""
        root = self.key(by, Purpose.VERSION)
        ring = read_keyring(path) or KeyringFile(root.public.x, (keyring.entry(root.public),))
        if root.public.x != ring.root:
            raise CommandError(f"{by} is not the root", returncode=1)
        if kid == root.public.kid:
            raise CommandError("the root cannot be revoked: clients have to pin another one", returncode=1)
        chosen = next((member for member in ring.keys if member.kid == kid), None)
        if chosen is None:
            raise CommandError(f"{kid} is not in the keyring; vouch for it first", returncode=1)
        if chosen.sluicegate_revocation:
            raise CommandError(f"{kid} is revoked already", returncode=1)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        gone = keyring.revoked(chosen, root=root, at=at, reason=reason)
        write_keyring(path, replace(ring, keys=tuple(gone if one is chosen else one for one in ring.keys)))
        self.stdout.write(f"{kid} is revoked")

    def do_list(self, *, path: Path, **_: object) -> None:
        ring = read_keyring(path)
        if ring is None:
            self.stdout.write(f"{path}: there is no keyring; the version key is the root")
            return
        root = keyring.root_key(ring.root)
        found = keyring.believed(ring.keys, root)
        for member in ring.keys:
            key = found.keys.get(member.kid)
            state = "the root, which clients pin" if member.kid == root.kid else "believed"
            if key is None:
                state = f"not believed: {found.refused[member.kid]}"
            elif key.revoked:
                state = f"revoked {key.revoked}"
            self.stdout.write(f"{member.kid}  {member.x}  {state}")
        if found.refused:
            raise CommandError(f"{path}: {len(found.refused)} not believed", returncode=1)

    def key(self, file: Path, purpose: Purpose) -> SigningKey:
        try:
            return SigningKey.from_pem(file.read_bytes(), purpose)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}", returncode=2) from None
        except KeyRefused as error:
            raise CommandError(f"{file}: {error}", returncode=1) from None
