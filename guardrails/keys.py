"""Where signing keys are: files that settings name, or generated ones in the data directory.

Protects the rule that a private key is never in the database: it is read from a file, kept in this process's memory,
and only ``signing`` sees it. A file that nobody named is generated once (mode 0600, directory 0700); production refuses
that (check ``sluicegate.E004``).
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path

from django.conf import settings

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
    """The public keys, by kid, whose signatures of this purpose are believed."""
    public = signing_key(purpose).public
    return {public.kid: public}


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
