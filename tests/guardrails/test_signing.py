"""Only what was signed for this purpose, by a key of this purpose, over exactly these bytes, is believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from guardrails.signing import (
    KeyRefused,
    PublicKey,
    Purpose,
    SignatureRefused,
    SigningKey,
    canonical_bytes,
    digest_of,
    new_key_pem,
    sign,
    verify,
)

PEM = new_key_pem()
KEY = SigningKey.from_pem(PEM, Purpose.VERSION)
TRUSTED = {KEY.public.kid: KEY.public}
PAYLOAD = canonical_bytes({"policy": "p", "version": 1, "document": {"ü": 1.0, "a": [True, None]}})


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: object, payload: bytes = PAYLOAD) -> str:
    """A correct signature by the trusted key over a header of the attacker's choice."""
    signed = f"{encoded(json.dumps(header).encode())}.{encoded(payload)}"
    private = serialization.load_pem_private_key(PEM, password=None)
    assert isinstance(private, Ed25519PrivateKey)
    return f"{signed}.{encoded(private.sign(signed.encode()))}"


def header(**changes: object) -> dict[str, object]:
    return {"alg": "Ed25519", "kid": KEY.public.kid, "typ": Purpose.VERSION.value, **changes}


def test_it_works() -> None:
    compact = sign(PAYLOAD, KEY)
    assert verify(compact, TRUSTED, Purpose.VERSION) == PAYLOAD
    assert verify(forged(header()), TRUSTED, Purpose.VERSION) == PAYLOAD  # the forger below can sign


def test_canonical_form_and_digest_are_those_of_the_standards() -> None:
    assert (
        canonical_bytes({"b": 1.0, "a": "é\u0001", "c": [1e21, 0.1]})
        == '{"a":"é\\u0001","b":1,"c":[1e+21,0.1]}'.encode()
    )
    assert digest_of(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["\x7f\u2028", "\ufb33", "😀"])
_NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_LEAVES = st.none() | st.booleans() | _NUMBERS | _TEXTS
_JSON = st.recursive(_LEAVES, lambda one: st.lists(one, max_size=4) | st.dictionaries(_TEXTS, one, max_size=4))


@given(st.dictionaries(_TEXTS, _JSON, max_size=4))
@example({"\ufb33": 1, "😀": 2, "z": {}, "a": [[], 2**53 - 1, '\x00\x1f\x7f"\\/\u2028é😀', True, None]})
@example({"a": [0.85, 1e-4, 9.9e-05, -0.1, 1.0, -0.0, 1e16, 2.0**52 + 0.5, 5e-324]})
@example({"b": {"a": "\x0b\b\f\n\r\t"}, "B": -(2**53) + 1, "_": False})
def test_the_quick_way_writes_what_the_library_writes(value: dict[str, object]) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, -(2**53), 2**53 + 1, "\ud800", {"\ud800": 1}, {1: 2}, object()]
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own subclasses
        canonical_bytes({"a": value, "b": {"c": [value]}})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (header(alg="none"), "algorithm"),
        (header(alg="HS256"), "algorithm"),
        (header(alg="EdDSA"), "algorithm"),
        (header(alg="ES256"), "algorithm"),
        (header(typ=Purpose.ACTIVATION.value), "type"),
        (header(typ="JWT"), "type"),
        (header(jku="https://keys.example/jwks.json"), "nothing else"),
        (header(jwk=KEY.public.as_jwk()), "nothing else"),
        (header(x5u="https://keys.example/chain.pem"), "nothing else"),
        (header(crit=["exp"]), "nothing else"),
        (header(crit=["b64"], b64=False), "nothing else"),
        (header(kid="version-somebody-else"), "not trusted"),
        ({"alg": "Ed25519", "kid": KEY.public.kid}, "nothing else"),
        ([], "nothing else"),
        ("x", "nothing else"),
    ],
)
def test_header_that_says_anything_else_is_refused_although_the_signature_fits(changed: object, words: str) -> None:
    with pytest.raises(SignatureRefused, match=words):
        verify(forged(changed), TRUSTED, Purpose.VERSION)


@pytest.mark.parametrize("compact", ["", ".", "..", "a.b.c", "e30.e30.e30", "é.é.é", "[[[[.x.y", "a" * 4_000_001])
def test_garbage_is_refused_in_one_way(compact: str) -> None:
    with pytest.raises(SignatureRefused):
        verify(compact, TRUSTED, Purpose.VERSION)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_one_changed_character_anywhere_is_refused(part: int) -> None:
    parts = sign(PAYLOAD, KEY).split(".")
    middle = len(parts[part]) // 2
    parts[part] = parts[part][:middle] + ("A" if parts[part][middle] != "A" else "B") + parts[part][middle + 1 :]
    with pytest.raises(SignatureRefused):
        verify(".".join(parts), TRUSTED, Purpose.VERSION)


def test_public_key_as_a_shared_secret_is_refused() -> None:
    """The classic confusion: HMAC with the public key's bytes."""
    signed = f"{encoded(json.dumps(header(alg='HS256')).encode())}.{encoded(PAYLOAD)}"
    mac = hmac.new(base64.urlsafe_b64decode(KEY.public.x + "="), signed.encode(), "sha256").digest()
    with pytest.raises(SignatureRefused):
        verify(f"{signed}.{encoded(mac)}", TRUSTED, Purpose.VERSION)


def test_key_of_another_purpose_is_refused_even_when_it_is_listed() -> None:
    activation = SigningKey.from_pem(new_key_pem(), Purpose.ACTIVATION)
    compact = sign(PAYLOAD, activation)
    with pytest.raises(SignatureRefused, match="type"):
        verify(compact, {activation.public.kid: activation.public}, Purpose.VERSION)
    posing = PublicKey(KEY.public.kid, Purpose.ACTIVATION, KEY.public.x)
    with pytest.raises(SignatureRefused, match="not trusted"):
        verify(sign(PAYLOAD, KEY), {KEY.public.kid: posing}, Purpose.VERSION)


def test_key_id_names_the_purpose_and_differs_between_keys() -> None:
    other = SigningKey.from_pem(new_key_pem(), Purpose.VERSION)
    same = SigningKey.from_pem(PEM, Purpose.ACTIVATION)
    assert len({KEY.public.kid, other.public.kid, same.public.kid}) == 3
    assert same.public.kid.startswith("activation-")


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"no key",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        ),
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    ],
    ids=["empty", "garbage", "another curve", "encrypted", "public"],
)
def test_file_that_holds_no_such_key_is_refused(pem: bytes) -> None:
    with pytest.raises(KeyRefused):
        SigningKey.from_pem(pem, Purpose.VERSION)


def test_private_key_never_shows() -> None:
    private = serialization.load_pem_private_key(PEM, password=None)
    assert isinstance(private, Ed25519PrivateKey)
    d = encoded(private.private_bytes_raw())
    assert d not in repr(KEY)
    assert d not in json.dumps(KEY.public.as_jwk())
    assert "d" not in KEY.public.as_jwk()
