"""Where signing keys are: files that settings name, or generated ones in the data directory.

Protects the rule that a private key is never in the database: it is read from a file, kept in this process's memory,
and only ``signing`` sees it. A file that nobody named is generated once (mode 0600, directory 0700); production refuses
that (check ``sluicegate.E004``).

Keys that were in use before, or that are revoked, stand in the keyring: a file too, because the database is what
signatures guard. Without one, the version key itself is the root, and it vouches for the other two. A keyring that
settings name and that is not there is no such case: with it, every revocation would be gone.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from django.conf import settings

from guardrails import keyring
from guardrails.keyring import Keyring, KeyringRefused, KeySet, Stated
from guardrails.signing import KeyRefused, PublicKey, Purpose, SigningKey, new_key_pem

_SETTING = {
    Purpose.VERSION: "SLUICEGATE_VERSION_KEY_FILE",
    Purpose.ACTIVATION: "SLUICEGATE_ACTIVATION_KEY_FILE",
    Purpose.AUDIT: "SLUICEGATE_AUDIT_KEY_FILE",
}


def key_file(purpose: Purpose) -> tuple[Path, bool]:
    """The file of a purpose's key, and whether settings named it (else it is generated on first use)."""
    if named := str(getattr(settings, _SETTING[purpose], "")):
        return Path(named), True
    return Path(settings.SLUICEGATE_DATA_DIR) / "keys" / f"{purpose.name.lower()}.pem", False


def signing_key(purpose: Purpose) -> SigningKey:
    """The key that signs. Raises ``KeyRefused`` when the named file cannot be used."""
    path, named = key_file(purpose)
    return _loaded(path, purpose, named)


def trusted_keys(purpose: Purpose) -> dict[str, PublicKey]:
    """The public keys, by kid, whose signatures of this purpose are believed; revoked ones say so. Raises
    ``KeyRefused``."""
    return _trust(generation()).of(purpose)


def untrusted_keys() -> dict[str, str]:
    """Keys that stand in the set without being believed, and why. Raises ``KeyRefused``."""
    return dict(_trust(generation()).refused)


def key_set() -> dict[str, object]:
    """The public keys as a JWK set: those of the keyring and those that sign now, with what the root states about
    them. Raises ``KeyRefused``."""
    return _set().as_dict()


@dataclass(frozen=True, slots=True)
class KeyringFile:
    """A keyring as it stands in its file."""

    root: str
    keys: KeySet

    def as_json(self) -> str:
        """What is written."""
        return json.dumps({"root": self.root, **self.keys.as_dict()}, indent=2) + "\n"


def keyring_file() -> Path:
    """Where the keyring is, if there is one."""
    named = str(settings.SLUICEGATE_KEYRING_FILE)
    return Path(named) if named else Path(settings.SLUICEGATE_DATA_DIR) / "keys" / "keyring.json"


def read_keyring(path: Path) -> KeyringFile | None:
    """The keyring in a file; None if there is no file. Raises ``KeyRefused``."""
    try:
        found = json.loads(path.read_text("utf-8"))
        members = keyring.read_set(found)
        root = found["root"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyRefused(f"{path}: {error.strerror}") from None
    except (ValueError, KeyringRefused, KeyError, RecursionError) as error:
        raise KeyRefused(f"{path}: not a keyring: {error}") from None
    if not isinstance(root, str):
        raise KeyRefused(f"{path}: not a keyring: “root” must be a key")
    return KeyringFile(root, members)


def keyring_in_use() -> KeyringFile | None:
    """The keyring that counts; None if there is none and settings name none. Raises ``KeyRefused``."""
    path = keyring_file()
    ring = read_keyring(path)
    if ring is None and settings.SLUICEGATE_KEYRING_FILE:
        raise KeyRefused(f"{path}: settings name this keyring, and it is not there")
    return ring


def write_keyring(path: Path, ring: KeyringFile) -> None:
    """Put a keyring in the place of the one before, whole or not at all."""
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".keyring-")
    with os.fdopen(descriptor, "w") as file:
        file.write(ring.as_json())
    os.chmod(draft, 0o644)
    os.replace(draft, path)


def root() -> PublicKey:
    """The root that clients pin. Raises ``KeyRefused``."""
    ring = keyring_in_use()
    return keyring.root_key(ring.root) if ring is not None else signing_key(Purpose.VERSION).public


Generation = tuple[tuple[Path, int, int] | None, ...]


def generation() -> Generation:
    """Changes whenever what is believed may have changed: what was verified before is then verified anew."""
    return (*(_stamp(key_file(purpose)[0]) for purpose in Purpose), _stamp(keyring_file()))


def _stamp(path: Path) -> tuple[Path, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return path, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _trust(_: Generation) -> Keyring:
    try:
        return keyring.believed(_set(), root())
    except KeyringRefused as error:
        raise KeyRefused(f"{keyring_file()}: {error}") from error


def _set() -> KeySet:
    """The keyring's keys, then those that sign now, vouched for by the version key at hand."""
    ring = keyring_in_use()
    version = signing_key(Purpose.VERSION)
    found = KeySet((), keyring.state(Stated(serial=1, revoked=()), version)) if ring is None else ring.keys
    members = {member.kid: member for member in found.members}
    for purpose in Purpose:
        public = signing_key(purpose).public
        itself = public.kid == version.public.kid
        if public.kid not in members:
            members[public.kid] = keyring.entry(public, None if itself else version)
    return replace(found, members=tuple(members.values()))


def write_new_key(path: Path) -> bool:
    """Write a new private key; False, and nothing written, if the file exists. Whole or not at all: processes that
    start together agree on one key and none reads half of it."""
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(new_key_pem())
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    return True


@lru_cache(maxsize=16)
def _loaded(path: Path, purpose: Purpose, named: bool) -> SigningKey:
    if not named and not path.exists():
        write_new_key(path)
    try:
        return SigningKey.from_pem(path.read_bytes(), purpose)
    except OSError as error:
        raise KeyRefused(f"{path}: {error.strerror}") from None
    except KeyRefused as error:
        raise KeyRefused(f"{path}: {error}") from None
