"""What a client is given is believed only whole, fresh and by the pinned root; everything else is refused by name."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from guardrails import keyring
from guardrails.bundle import REASONS, BundleRefused, Verified, make_bundle, verify_bundle
from guardrails.signing import Purpose, SigningKey, Type, canonical_bytes, digest_of, new_key_pem, sign
from guardrails.statements import LIFETIME_S, SKEW_S, Subject, issue

NOW = 1_800_000_000.0


def key(purpose: Purpose) -> SigningKey:
    return SigningKey.from_pem(new_key_pem(), purpose)


ROOT_PEM = new_key_pem()
ROOT = SigningKey.from_pem(ROOT_PEM, Purpose.VERSION)
ACTIVATION_PEM = new_key_pem()
ACTIVATION = SigningKey.from_pem(ACTIVATION_PEM, Purpose.ACTIVATION)
STRANGER = key(Purpose.VERSION)
RULES: dict[str, Any] = {"policy": "p", "version": 7, "digest": "sha256:7", "guardrails": []}


@dataclass(frozen=True)
class Case:
    """All that a bundle is made of; a test replaces a part."""

    root: SigningKey = ROOT
    signer: SigningKey = ACTIVATION
    stater: SigningKey = ACTIVATION
    author: SigningKey = ROOT
    version: int = 7
    serial: int = 9
    at: float = NOW

    def rules(self) -> bytes:
        return canonical_bytes({**RULES, "version": self.version, "digest": f"sha256:{self.version}"})

    def statement(self, **changes: Any) -> str:
        digest = digest_of(self.rules())
        subject = Subject("us", "p", "", self.serial, self.version, f"sha256:{self.version}", digest)
        return issue(replace(subject, **changes), now=self.at, key=self.stater)

    def bundle(self, **changes: Any) -> str:
        rules = sign(self.rules(), self.author, Type.CLIENT_RULES)
        return make_bundle(activation=self.statement(**changes), client_rules=rules, key=self.signer)

    def keys(self, *more: keyring.Jwk, serial: int = 1, revoked: tuple[str, ...] = ()) -> dict[str, object]:
        own = (keyring.entry(ROOT.public), keyring.entry(ACTIVATION.public, ROOT))
        return keyring.KeySet((*own, *more), said_of_keys(serial, *revoked)).as_dict()


def said_of_keys(serial: int, *revoked: str, by: SigningKey = ROOT) -> str:
    """What the root says about a set of keys."""
    gone = [keyring.Revocation(kid=kid, revoked_at="2026-11-01", reason="lost laptop") for kid in revoked]
    return keyring.state(keyring.Stated(serial=serial, revoked=tuple(gone)), by)


def read(compact: str, keys: object = None, **changes: Any) -> Verified:
    given: dict[str, Any] = {"root": ROOT.public.x, "now": NOW, "issuer": "us", "policy": "p", **changes}
    return verify_bundle(compact, Case().keys() if keys is None else keys, **given)


def refused(compact: str, keys: object = None, **changes: Any) -> tuple[str, str]:
    with pytest.raises(BundleRefused) as error:
        read(compact, keys, **changes)
    assert error.value.reason in REASONS
    return error.value.reason, str(error.value)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(compact: str, pem: bytes, **header: object) -> str:
    """The same payload, correctly signed by a believed key, under a header of the attacker's choice."""
    first, payload, _ = compact.split(".")
    was = json.loads(base64.urlsafe_b64decode(first + "=="))
    head = encoded(json.dumps({**was, **header}).encode())
    private = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(private, Ed25519PrivateKey)
    return f"{head}.{payload}.{encoded(private.sign(f'{head}.{payload}'.encode()))}"


def test_it_works() -> None:
    found = read(Case().bundle())
    assert (found.statement.version, found.statement.serial) == (7, 9)
    assert found.client_rules == RULES
    assert found.place == ("us", "p", "")
    assert read(forged(Case().bundle(), ACTIVATION_PEM)).statement == found.statement  # the forger below can sign


def wrong_with(compact: str, like: str) -> str:
    """What the form itself says is wrong with a JWS that is not ``like``, which is a good one: the first thing that a
    reader comes to."""
    parts = compact.split(".")
    if len(parts) != 3 or any(decoded(part) is None for part in parts):
        return "malformed"
    try:
        header, good = (json.loads(decoded(one.split(".")[0]) or b"") for one in (compact, like))
    except ValueError:
        return "malformed"
    if not isinstance(header, dict) or header.keys() != good.keys():
        return "header"
    different = [name for name in ("alg", "typ", "kid") if header[name] != good[name]]
    return {"alg": "algorithm", "typ": "type", "kid": "unknown_key"}[different[0]] if different else "signature"


def decoded(part: str) -> bytes | None:
    """Base64url without padding, written in its one way; else None."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return None
    return data if encoded(data) == part else None


def changes_of(text: str) -> Iterator[str]:
    """The text with each of its characters changed, in two ways, made a dot, and left out."""
    for at, char in enumerate(text):
        for other in sorted({"A", "B", ".", ""} - {char}):
            yield text[:at] + other + text[at + 1 :]


def test_every_single_byte_of_a_bundle_counts_and_the_reason_names_what_it_broke() -> None:
    bundle = Case().bundle()
    assert len(bundle) < 4_000
    found: Counter[str] = Counter()
    for changed in changes_of(bundle):
        reason, words = refused(changed)
        assert reason == wrong_with(changed, bundle), changed
        assert len(words.split()) > 3
        found[reason] += 1
    assert found.keys() == {"malformed", "header", "algorithm", "type", "unknown_key", "signature"}
    assert found["signature"] > len(bundle)


def test_bits_that_nobody_reads_count_as_well() -> None:
    bundle = Case().bundle()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same = alphabet[alphabet.index(bundle[-1]) ^ 1]  # the lowest bit of the last character is padding
    assert refused(bundle[:-1] + same)[0] == "malformed"


@pytest.mark.parametrize("part", ["activation", "client_rules"])
def test_every_byte_of_the_parts_counts_though_the_bundle_around_them_is_signed_anew(part: str) -> None:
    parts = {"activation": Case().statement(), "client_rules": sign(Case().rules(), ROOT, Type.CLIENT_RULES)}
    found: Counter[str] = Counter()
    for changed in changes_of(parts[part]):
        reason, _ = refused(make_bundle(**{**parts, part: changed}, key=ACTIVATION))
        assert reason == wrong_with(changed, parts[part]), changed
        found[reason] += 1
    assert found.keys() == {"malformed", "header", "algorithm", "type", "unknown_key", "signature"}


def test_roll_back_is_followed_and_its_undoing_refused() -> None:
    """v7, then back to v6 with a higher serial: whoever saw that takes v7's old word no more."""
    seven, six = Case(), Case(version=6, serial=10)
    seen: dict[tuple[str, str, str], int] = {}
    first = read(seven.bundle(), seen=seen)
    seen[first.place] = first.statement.serial
    second = read(six.bundle(), seen=seen)
    assert (second.statement.version, second.statement.serial) == (6, 10)
    seen[second.place] = second.statement.serial
    assert refused(seven.bundle(), seen=seen)[0] == "replayed"
    assert read(six.bundle(), seen=seen).statement.version == 6


@pytest.mark.parametrize(
    ("age", "reason"),
    [(LIFETIME_S + SKEW_S + 1, "expired"), (-SKEW_S - 1, "not_yet"), (LIFETIME_S + SKEW_S - 1, ""), (-SKEW_S + 1, "")],
)
def test_it_lapses_after_a_day_and_five_minutes(age: float, reason: str) -> None:
    bundle = Case().bundle()
    if reason:
        assert refused(bundle, now=NOW + age)[0] == reason
    else:
        assert read(bundle, now=NOW + age).statement.version == 7


def test_longer_lifetime_than_a_day_is_refused() -> None:
    payload = json.loads(base64.urlsafe_b64decode(Case().statement().split(".")[1] + "=="))
    payload["exp"] += 1
    statement = sign(canonical_bytes(payload), ACTIVATION)
    bundle = make_bundle(
        activation=statement, client_rules=sign(Case().rules(), ROOT, Type.CLIENT_RULES), key=ACTIVATION
    )
    assert refused(bundle)[0] == "lifetime"


OTHERS: dict[str, tuple[Callable[[], Case], str]] = {
    "bundle": (lambda: Case(signer=key(Purpose.ACTIVATION)), "unknown_key"),
    "statement": (lambda: Case(stater=key(Purpose.ACTIVATION)), "unknown_key"),
    "rules": (lambda: Case(author=STRANGER), "unknown_key"),
}


@pytest.mark.parametrize("part", OTHERS)
def test_another_key_is_refused(part: str) -> None:
    make, reason = OTHERS[part]
    assert refused(make().bundle())[0] == reason


def test_key_that_is_listed_but_not_vouched_for_is_refused_and_the_reason_says_so() -> None:
    new = key(Purpose.ACTIVATION)
    keys = Case().keys(keyring.entry(new.public))
    reason, words = refused(Case(signer=new).bundle(), keys)
    assert (reason, "nobody vouched for it" in words) == ("unvouched_key", True)
    keys = Case().keys(keyring.entry(new.public, STRANGER))
    reason, words = refused(Case(signer=new).bundle(), keys)
    assert (reason, "voucher is not believed" in words) == ("unvouched_key", True)
    other = keyring.entry(ACTIVATION.public, ROOT).sluicegate_signature
    keys = Case().keys(keyring.entry(new.public).model_copy(update={"sluicegate_signature": other}))
    reason, words = refused(Case(signer=new).bundle(), keys)
    assert (reason, "for another key" in words) == ("unvouched_key", True)
    assert read(Case(signer=new).bundle(), Case().keys(keyring.entry(new.public, ROOT))).statement.version == 7


def test_key_under_the_name_of_a_believed_one_is_refused() -> None:
    fake = keyring.entry(key(Purpose.ACTIVATION).public).model_copy(update={"kid": "activation-mine"})
    assert refused(Case().bundle(), Case().keys(fake, fake))[0] == "malformed"
    ring = keyring.believed(keyring.KeySet((fake,), said_of_keys(1)), ROOT.public)
    assert ring.refused == {"activation-mine": "its name does not fit the key"}


def test_set_without_the_root_still_has_the_pinned_one_and_another_root_believes_nothing() -> None:
    keys = Case().keys() | {"keys": [keyring.entry(ACTIVATION.public, ROOT).as_dict()]}
    assert read(Case().bundle(), keys).statement.version == 7
    assert refused(Case().bundle(), root=STRANGER.public.x)[0] == "unknown_key"


def test_chain_of_version_keys_is_followed_and_falls_with_a_revoked_link() -> None:
    second, third = key(Purpose.VERSION), key(Purpose.VERSION)
    links = [keyring.entry(third.public, second), keyring.entry(second.public, ROOT)]
    bundle = Case(author=third).bundle()
    assert read(bundle, Case().keys(*links)).statement.version == 7
    gone = (second.public.kid,)
    assert refused(bundle, Case().keys(*links, revoked=gone))[0] == "unvouched_key"
    reason, words = refused(Case(author=second).bundle(), Case().keys(*links, revoked=gone))
    assert (reason, "lost laptop" in words) == ("revoked_key", True)
    assert refused(Case(author=second).bundle(), Case().keys(revoked=gone))[0] == "revoked_key"  # nor by leaving it out


def test_revocation_cannot_be_left_out_by_who_serves_the_keys() -> None:
    """The set before the revocation has a lower serial; a set with no statement, or another's, is no set."""
    gone = (ACTIVATION.public.kid,)
    assert refused(Case().bundle(), Case().keys(serial=2, revoked=gone))[0] == "revoked_key"
    assert read(Case().bundle(), Case().keys(serial=1), keys_seen=1).keys_serial == 1
    assert refused(Case().bundle(), Case().keys(serial=1), keys_seen=2)[0] == "replayed"
    without = {"keys": Case().keys()["keys"]}
    assert refused(Case().bundle(), without)[0] == "malformed"
    second = key(Purpose.VERSION)
    vouched = Case().keys(keyring.entry(second.public, ROOT))
    for statement, reason in (
        (said_of_keys(3, by=STRANGER), "unknown_key"),
        (said_of_keys(3, by=second), "unknown_key"),  # the root alone says what is revoked
        (said_of_keys(3)[:-4] + "AAAA", "signature"),
        (sign(b'{"serial":3,"revoked":[]}', ROOT, Type.CLIENT_RULES), "type"),
        (sign(b'{"serial":0,"revoked":[]}', ROOT, Type.KEY_SET), "malformed"),
        (sign(b'{"serial":3}', ROOT, Type.KEY_SET), "malformed"),
        (sign(b'{"serial":3,"revoked":[{"kid":"x"}]}', ROOT, Type.KEY_SET), "malformed"),
        (7, "malformed"),
    ):
        assert refused(Case().bundle(), vouched | {"sluicegate_statement": statement})[0] == reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "algorithm"),
        ({"alg": "HS256"}, "algorithm"),
        ({"alg": "EdDSA"}, "algorithm"),
        ({"alg": "ES256"}, "algorithm"),
        ({"jku": "https://example.org/keys"}, "header"),
        ({"jwk": ROOT.public.as_jwk()}, "header"),
        ({"x5u": "https://example.org/x"}, "header"),
        ({"crit": ["exp"], "exp": 1}, "header"),
        ({"typ": Purpose.ACTIVATION.value}, "type"),
        ({"typ": "JWT"}, "type"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else value,
)
def test_header_of_an_attackers_choice_is_refused_though_the_signature_fits(
    header: dict[str, object], reason: str
) -> None:
    assert refused(forged(Case().bundle(), ACTIVATION_PEM, **header))[0] == reason


def with_mac(compact: str, x: str) -> str:
    """The same payload under HS256, its MAC made with the public key, which everybody has, as the secret."""
    first, payload, _ = compact.split(".")
    header = json.loads(base64.urlsafe_b64decode(first + "=="))
    head = encoded(json.dumps({**header, "alg": "HS256"}).encode())
    mac = hmac.new(base64.urlsafe_b64decode(x + "="), f"{head}.{payload}".encode(), hashlib.sha256).digest()
    return f"{head}.{payload}.{encoded(mac)}"


def test_key_used_as_a_shared_secret_is_refused() -> None:
    assert refused(with_mac(Case().bundle(), ACTIVATION.public.x))[0] == "algorithm"


def test_one_thing_signed_never_passes_for_another() -> None:
    rules, statement = sign(Case().rules(), ROOT, Type.CLIENT_RULES), Case().statement()
    assert refused(make_bundle(activation=rules, client_rules=statement, key=ACTIVATION))[0] == "type"
    assert refused(statement)[0] == "type"
    document = sign(Case().rules(), ROOT)  # a version is signed by the same key
    assert refused(make_bundle(activation=statement, client_rules=document, key=ACTIVATION))[0] == "type"
    with pytest.raises(ValueError, match="does not sign"):
        sign(b"{}", ROOT, Type.BUNDLE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuer": "them"}, "issuer"),
        ({"policy": "q"}, "policy"),
        ({"client_digest": "sha256:0"}, "digest"),
        ({"client_digest": ""}, "digest"),
        ({"version": 8}, "digest"),
        ({"digest": "sha256:8"}, "digest"),
    ],
    ids=str,
)
def test_statement_about_something_else_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refused(Case().bundle(**changes))[0] == reason


@pytest.mark.parametrize(
    "keys",
    [None.__class__, [], {}, {"keys": {}}, {"keys": [1]}, {"keys": [{"kty": "RSA"}]}, {"keys": [{"kty": "OKP"}]}],
    ids=str,
)
def test_what_is_no_set_of_keys_is_refused(keys: object) -> None:
    assert refused(Case().bundle(), keys)[0] == "malformed"


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "é.é.é", "{}", "x" * 5_000_000], ids=range(7))
def test_what_is_no_bundle_is_refused(text: str) -> None:
    assert refused(text)[0] == "malformed"
