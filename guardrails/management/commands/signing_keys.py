"""`manage.py signing_keys …`: who is believed. Keys are vouched for and revoked with the root, wherever that is kept.

Works on files alone, without a database, so that it can run on the machine that has the root's private key and nothing
else. Exit status 0, 1 (refused, or a listed key is not believed), 2 (usage).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from django.core.management.base import BaseCommand, CommandError, CommandParser

from guardrails import keyring
from guardrails.keyring import KeyringRefused, KeySet, Revocation, Stated
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
        state = actions.add_parser("state", help="say anew, by the root, what is revoked: after a keyring was restored")
        state.add_argument("--by", type=Path, required=True, metavar="FILE", help="the root's private key")
        state.add_argument("--serial", type=int, default=0, help="the least that its serial has to be")
        listed = actions.add_parser("list", help="the keys, and which of them are believed")
        for action in (vouch, revoke, state, listed):
            action.add_argument("--keyring", type=Path, metavar="FILE", help="default: the one that settings name")

    def handle(self, *args: object, verb: str, keyring: Path | None, **options: object) -> None:
        try:
            getattr(self, f"do_{verb}")(path=keyring or keyring_file(), **options)
        except (KeyRefused, KeyringRefused) as error:
            raise CommandError(str(error), returncode=1) from None

    def do_vouch(self, *, path: Path, file: Path, purpose: str, by: Path, **_: object) -> None:
        """The first voucher of a new keyring says who its root is."""
        voucher = self.key(by, Purpose.VERSION)
        ring = read_keyring(path) or new_keyring(voucher)
        known = keyring.believed(ring.keys, keyring.root_key(ring.root)).keys.get(voucher.public.kid)
        if known is None or known.revoked:
            raise CommandError(f"{by} is not a version key that the keyring believes", returncode=1)
        public = self.key(file, Purpose[purpose.upper()]).public
        if any(member.kid == public.kid for member in ring.keys.members):
            raise CommandError(f"{public.kid} is in the keyring already", returncode=1)
        if any(member.x == public.x for member in ring.keys.members):
            raise CommandError(f"{file} serves another purpose already; make a key for each", returncode=1)
        members = (*ring.keys.members, keyring.entry(public, voucher))
        write_keyring(path, KeyringFile(ring.root, KeySet(members, ring.keys.statement)))
        self.stdout.write(f"{public.kid} vouched for by {voucher.public.kid}")

    def do_revoke(self, *, path: Path, kid: str, by: Path, reason: str, **_: object) -> None:
        """The root alone revokes: a stolen version key must not be able to take the others away."""
        root = self.key(by, Purpose.VERSION)
        ring = read_keyring(path) or new_keyring(root)
        if root.public.x != ring.root:
            raise CommandError(f"{by} is not the root", returncode=1)
        if kid == root.public.kid:
            raise CommandError("the root cannot be revoked: clients have to pin another one", returncode=1)
        if not any(member.kid == kid for member in ring.keys.members):
            raise CommandError(f"{kid} is not in the keyring; vouch for it first", returncode=1)
        said = keyring.stated(ring.keys, root.public)
        if any(one.kid == kid for one in said.revoked):
            raise CommandError(f"{kid} is revoked already", returncode=1)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        gone = Revocation(kid=kid, revoked_at=at, reason=reason[:500])
        serial = self.write(path, ring, Stated(serial=said.serial + 1, revoked=(*said.revoked, gone)), root)
        self.stdout.write(f"{kid} is revoked; the keyring has serial {serial}")

    def do_state(self, *, path: Path, by: Path, serial: int, **_: object) -> None:
        """Clients that saw a higher serial than a restored keyring has refuse it: it needs one that is higher still."""
        root = self.key(by, Purpose.VERSION)
        ring = read_keyring(path)
        if ring is None:
            raise CommandError(f"{path}: there is no keyring", returncode=1)
        if root.public.x != ring.root:
            raise CommandError(f"{by} is not the root", returncode=1)
        said = keyring.stated(ring.keys, root.public)
        written = self.write(path, ring, Stated(serial=max(said.serial + 1, serial), revoked=said.revoked), root)
        self.stdout.write(f"the keyring has serial {written}, {len(said.revoked)} revoked")

    def write(self, path: Path, ring: KeyringFile, said: Stated, root: SigningKey) -> int:
        write_keyring(path, KeyringFile(ring.root, KeySet(ring.keys.members, keyring.state(said, root))))
        return said.serial

    def do_list(self, *, path: Path, **_: object) -> None:
        ring = read_keyring(path)
        if ring is None:
            self.stdout.write(f"{path}: there is no keyring; the version key is the root")
            return
        root = keyring.root_key(ring.root)
        found = keyring.believed(ring.keys, root)
        self.stdout.write(f"serial {found.serial}")
        for member in ring.keys.members:
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


def new_keyring(root: SigningKey) -> KeyringFile:
    """A keyring with nothing but its root, and nothing revoked."""
    statement = keyring.state(Stated(serial=1, revoked=()), root)
    return KeyringFile(root.public.x, KeySet((keyring.entry(root.public),), statement))
