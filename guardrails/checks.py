"""System checks: what is misconfigured is said before a request finds out.

Ids are stable: sluicegate.E001 demo secret in production, E002 DEBUG in production, E003 demo mode in production,
E004 generated signing keys in production, E005 no database or broker named in production, E006 a signing key cannot be
used, E007 one key for two purposes, E008 no key for stored texts in production, E009 such a key is
none, E010 the keyring cannot be used, E011 a key that signs is not believed, W001 no broker, W002 no file for the
audit log's heads in production.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from guardrails.keys import key_file, keyring_in_use, signing_key, trusted_keys, untrusted_keys
from guardrails.signing import KeyRefused, Purpose


@register
def check_production(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """What production must not have."""
    if not settings.SLUICEGATE_PRODUCTION:
        return []
    found: list[CheckMessage] = []
    if settings.SLUICEGATE_SECRET_KEY_GENERATED:
        found.append(
            Error(
                "Production runs with the generated demo secret key.",
                hint="Set SLUICEGATE_SECRET_KEY to 50 or more random characters.",
                id="sluicegate.E001",
            )
        )
    if settings.DEBUG:
        found.append(Error("Production runs with DEBUG.", hint="Unset DEBUG.", id="sluicegate.E002"))
    if settings.SLUICEGATE_DEMO:
        found.append(Error("Production runs in demo mode.", hint="Unset SLUICEGATE_DEMO.", id="sluicegate.E003"))
    missing = [
        name
        for name in ("SLUICEGATE_VERSION_KEY_FILE", "SLUICEGATE_ACTIVATION_KEY_FILE", "SLUICEGATE_AUDIT_KEY_FILE")
        if not getattr(settings, name)
    ]
    if missing:
        found.append(
            Error(
                f"Production signs with generated demo keys: {', '.join(missing)} not set.",
                hint="Name files with Ed25519 private keys (manage.py help make_signing_key).",
                id="sluicegate.E004",
            )
        )
    if not settings.SLUICEGATE_TEXT_KEYS:
        found.append(
            Error(
                "Production has no key for the texts that it stores.",
                hint="Set SLUICEGATE_TEXT_KEYS to one or more keys of 32 bytes in base64url, the newest first.",
                id="sluicegate.E008",
            )
        )
    if unset := [name for name in ("DATABASE_URL", "REDIS_URL") if not getattr(settings, name, "")]:
        found.append(
            Error(
                f"Production needs {' and '.join(unset)}.",
                hint="DATABASE_URL=postgres://…, REDIS_URL=redis://…",
                id="sluicegate.E005",
            )
        )
    return found


@register
def check_signing_keys(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Key files that settings name can be read and are distinct; generated ones are not looked for here."""
    found: list[CheckMessage] = []
    purposes: dict[str, Purpose] = {}
    for purpose in Purpose:
        if not key_file(purpose)[1]:
            continue
        try:
            public = signing_key(purpose).public
        except KeyRefused as error:
            found.append(
                Error(
                    f"The {purpose.name.lower()} key cannot be used: {error}.",
                    hint="Make one with manage.py make_signing_key FILE.",
                    id="sluicegate.E006",
                )
            )
            continue
        other = purposes.setdefault(public.x, purpose)
        if other is not purpose:
            found.append(
                Error(
                    f"One key serves two purposes: {other.name.lower()} and {purpose.name.lower()}.",
                    hint="Make a key for each with manage.py make_signing_key FILE.",
                    id="sluicegate.E007",
                )
            )
    return found + _check_keyring()


def _check_keyring() -> list[CheckMessage]:
    """Every key that signs is believed by whoever knows the root; without a keyring the version key is the root."""
    hint = "docs/signing.md says how keys are vouched for and changed."
    try:
        if keyring_in_use() is None:
            return []
        refused = untrusted_keys()
        signing = [signing_key(purpose).public.kid for purpose in Purpose]
        believed = {kid: key for purpose in Purpose for kid, key in trusted_keys(purpose).items()}
    except KeyRefused as error:
        return [Error(f"The keyring cannot be used: {error}.", hint=hint, id="sluicegate.E010")]
    why = {kid: refused.get(kid, "it is not listed") for kid in signing if kid not in believed}
    why |= {kid: f"revoked, {believed[kid].revoked}" for kid in signing if kid in believed and believed[kid].revoked}
    return [
        Error(f"The key {kid} signs and is not believed: {reason}.", hint=hint, id="sluicegate.E011")
        for kid, reason in why.items()
    ]


@register
def check_text_keys(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Every key for stored texts is one."""
    wrong = [number for number, key in enumerate(settings.SLUICEGATE_TEXT_KEYS, start=1) if not _is_fernet_key(key)]
    if not wrong:
        return []
    return [
        Error(
            f"SLUICEGATE_TEXT_KEYS: number {', '.join(map(str, wrong))} is no key.",
            hint="A key is 32 random bytes in base64url: 44 characters.",
            id="sluicegate.E009",
        )
    ]


def _is_fernet_key(key: str) -> bool:
    try:
        Fernet(key)
    except ValueError:
        return False
    return True


@register
def check_audit_heads(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Only a head kept elsewhere shows that whoever owns the database has written a whole new history."""
    if settings.SLUICEGATE_AUDIT_HEADS_FILE or not settings.SLUICEGATE_PRODUCTION:
        return []
    return [
        Warning(
            "Production keeps no heads of the audit log outside of the database.",
            hint="Set SLUICEGATE_AUDIT_HEADS_FILE to a file on a volume that only takes additions (docs/audit.md).",
            id="sluicegate.W002",
        )
    ]


@register
def check_broker(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[CheckMessage]:
    """Without a broker nothing crosses processes."""
    if settings.REDIS_URL or settings.SLUICEGATE_PRODUCTION:
        return []
    return [
        Warning(
            "REDIS_URL is not set: no answer can be streamed and deferred checks wait.",
            hint="Run `manage.py demo`, which starts an embedded Valkey, or set REDIS_URL.",
            id="sluicegate.W001",
        )
    ]
