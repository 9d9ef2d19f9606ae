"""Stored text, encrypted at rest.

Exists because the database is copied, dumped and backed up by people who have no business with what users wrote.
Protects the rule that prompt and answer stand in no column in clear: the two field types below encrypt on the way in
and decrypt on the way out (Fernet: AES-128-CBC with HMAC-SHA256), with keys that are in the environment and never in
the database. The first of ``SLUICEGATE_TEXT_KEYS`` encrypts, all of them decrypt, so that a key can be rotated
(``manage.py audit rotate``). Empty text stays empty, so that it can be asked for.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import structlog
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

logger = structlog.get_logger(__name__)

MARK = "sg1:"
_told: ContextVar[bool] = ContextVar("told", default=True)
CANNOT_BE_OPENED = "(This text cannot be opened with the keys of this installation.)"


class Unopened(dict[str, Any]):
    """A stored object that none of the keys opens: empty for whoever reads it, and written back as it was found."""

    def __init__(self, stored: str) -> None:
        super().__init__()
        self.stored = stored


def encrypt(text: str) -> str:
    """The text as it is stored."""
    return MARK + _fernet().encrypt(text.encode()).decode("ascii") if text else ""


def decrypt(stored: str) -> str:
    """The text again; of what none of the keys opens, words that say so."""
    if not stored.startswith(MARK):
        return stored
    try:
        return _fernet().decrypt(stored[len(MARK) :]).decode()
    except (InvalidToken, ValueError):  # the latter for what is no token at all
        if _told.get():
            logger.error("stored_text_cannot_be_opened")
        return CANNOT_BE_OPENED


@contextmanager
def counted_by_caller() -> Iterator[None]:
    """In here no line says of each single text that it cannot be opened: the caller tells of all of them in one."""
    before = _told.set(False)
    try:
        yield
    finally:
        _told.reset(before)


def _fernet() -> MultiFernet:
    return _built(tuple(settings.SLUICEGATE_TEXT_KEYS), settings.SECRET_KEY)


@lru_cache(maxsize=8)
def _built(keys: Sequence[str], secret_key: str) -> MultiFernet:
    # Without a key of its own (the demo; production refuses that) the text is under one that follows from SECRET_KEY.
    own = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sluicegate stored text 1").derive(secret_key.encode())
    return MultiFernet([*map(Fernet, keys), Fernet(urlsafe_b64encode(own))])


class SealedTextField(models.TextField):  # type: ignore[type-arg]  # generic in the stubs alone
    """Text that is encrypted in its column."""

    def get_prep_value(self, value: Any) -> Any:
        """On the way in."""
        value = super().get_prep_value(value)
        return encrypt(value) if isinstance(value, str) else value

    def from_db_value(self, value: str | None, *rest: object) -> str | None:
        """On the way out."""
        return None if value is None else decrypt(value)


class SealedJSONField(models.JSONField):
    """JSON that is encrypted in its column, as ``{"sg1": token}``; an empty object stays one."""

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        """On the way in."""
        if isinstance(value, Unopened):
            value = {MARK[:-1]: value.stored}
        elif isinstance(value, dict) and value:
            value = {MARK[:-1]: encrypt(json.dumps(value))}
        return super().get_db_prep_value(value, connection, prepared)

    def from_db_value(self, value: str | None, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        """On the way out."""
        found = super().from_db_value(value, expression, connection)
        if isinstance(found, dict) and found.keys() == {MARK[:-1]}:
            stored = str(found[MARK[:-1]])
            text = decrypt(stored)
            return Unopened(stored) if text == CANNOT_BE_OPENED else json.loads(text)
        return found
