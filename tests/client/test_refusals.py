"""A browser believes nothing but its pinned root: whatever else it is served is refused, with a code and a sentence."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from guardrails import keyring
from guardrails.bundle import make_bundle
from guardrails.signing import Purpose, Type, canonical_bytes, sign
from guardrails.statements import LIFETIME_S, SKEW_S
from tests.guardrails.test_bundle import (
    ACTIVATION,
    ACTIVATION_PEM,
    NOW,
    ROOT,
    ROOT_PEM,
    STRANGER,
    Case,
    forged,
    key,
    said_of_keys,
    with_mac,
)

OPENED = """async ([bundles, against]) => {
  const { Refused, opened, trusted } = await import("/static/client/src/verify.js");
  const said = [];
  for (const bundle of bundles) {
    const store = { ...against.store };
    const all = { ...against, store };
    const read = async () => opened(bundle, { ...all, keys: await trusted(against.jwks, all) });
    said.push(await read().then(
      ({ statement }) => ["", `${statement.version}`],
      (error) => (error instanceof Refused ? [error.code, error.message] : ["not a refusal", `${error}`]),
    ));
  }
  return said;
}"""


def read(tab: Page, *bundles: str, jwks: object = None, **changes: Any) -> list[list[str]]:
    against = {
        "jwks": Case().keys() if jwks is None else jwks,
        "root": ROOT.public.x,
        "policy": "p",
        "issuer": "us",
        "now": NOW,
        "store": {},
        **changes,
    }
    said: list[list[str]] = tab.evaluate(OPENED, [list(bundles), against])
    return said


def code(tab: Page, bundle: str, **changes: Any) -> str:
    ((said, words),) = read(tab, bundle, **changes)
    assert words.endswith(".") or not said or said == "malformed"
    return said


def test_it_works(tab: Page) -> None:
    assert read(tab, Case().bundle(), forged(Case().bundle(), ACTIVATION_PEM)) == [["", "7"], ["", "7"]]


def test_every_single_byte_of_a_bundle_counts(tab: Page) -> None:
    bundle = Case().bundle()
    changed = [bundle[:at] + ("A" if char != "A" else "B") + bundle[at + 1 :] for at, char in enumerate(bundle)]
    cut = [bundle[:at] + bundle[at + 1 :] for at in range(0, len(bundle), 7)]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    padding = bundle[:-1] + alphabet[alphabet.index(bundle[-1]) ^ 1]
    said = read(tab, *changed, *cut, padding, "", ".", "..", "a.b.c", "é.é.é", bundle + "=", bundle + ".x")
    assert {why for why, _ in said} <= {"malformed", "header", "algorithm", "type", "unknown_key", "signature"}
    assert [why for why, _ in said].count("signature") > len(bundle) // 2


def test_every_byte_of_the_parts_counts_though_the_bundle_around_them_is_signed_anew(tab: Page) -> None:
    rules, statement = sign(Case().rules(), ROOT, Type.CLIENT_RULES), Case().statement()
    other = [f"{rules[:at]}{'B' if char == 'A' else 'A'}{rules[at + 1 :]}" for at, char in enumerate(rules)]
    broken = [make_bundle(activation=statement, client_rules=one, key=ACTIVATION) for one in other]
    assert "" not in {why for why, _ in read(tab, *broken)}


def test_lower_serial_is_refused_and_a_roll_back_followed(tab: Page) -> None:
    root = f"sluicegate {ROOT.public.x}"
    seen = {f"{root}\nus\np\n": "10"}
    assert code(tab, Case().bundle(), store=seen) == "replayed"
    assert read(tab, Case(version=6, serial=10).bundle(), store=seen) == [["", "6"]]
    assert read(tab, Case().bundle(), store={f"{root}\nus\nq\n": 10, f"{root}\nus\np\nbeta": 10}) == [["", "7"]]


@pytest.mark.parametrize(
    ("age", "reason"),
    [(LIFETIME_S + SKEW_S + 1, "expired"), (-SKEW_S - 1, "not_yet"), (LIFETIME_S + SKEW_S - 1, ""), (-SKEW_S + 1, "")],
)
def test_it_lapses_after_a_day_and_five_minutes(tab: Page, age: float, reason: str) -> None:
    assert code(tab, Case().bundle(), now=NOW + age) == reason


def test_longer_lifetime_than_a_day_is_refused(tab: Page) -> None:
    payload = json.loads(base64.urlsafe_b64decode(Case().statement().split(".")[1] + "=="))
    statement = sign(canonical_bytes({**payload, "exp": payload["exp"] + 1}), ACTIVATION)
    rules = sign(Case().rules(), ROOT, Type.CLIENT_RULES)
    assert code(tab, make_bundle(activation=statement, client_rules=rules, key=ACTIVATION)) == "lifetime"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Case(signer=key(Purpose.ACTIVATION)),
        lambda: Case(stater=key(Purpose.ACTIVATION)),
        lambda: Case(author=STRANGER),
    ],
    ids=["bundle", "statement", "rules"],
)
def test_another_key_is_refused(tab: Page, make: Callable[[], Case]) -> None:
    assert code(tab, make().bundle()) == "unknown_key"


def test_another_root_believes_nothing(tab: Page) -> None:
    assert code(tab, Case().bundle(), root=STRANGER.public.x) == "unknown_key"


def test_key_that_is_listed_but_not_vouched_for_is_refused(tab: Page) -> None:
    new = key(Purpose.ACTIVATION)
    bundle = Case(signer=new).bundle()
    stolen = keyring.entry(ACTIVATION.public, ROOT).sluicegate_signature
    unsigned = keyring.entry(new.public)
    for listed in (
        unsigned,
        keyring.entry(new.public, STRANGER),
        unsigned.model_copy(update={"sluicegate_signature": stolen}),
        unsigned.model_copy(update={"sluicegate_signature": "x.y"}),
    ):
        assert code(tab, bundle, jwks=Case().keys(listed)) == "unvouched_key"
    assert read(tab, bundle, jwks=Case().keys(keyring.entry(new.public, ROOT))) == [["", "7"]]


def test_chain_of_version_keys_is_followed_and_falls_with_a_revoked_link(tab: Page) -> None:
    second, third = key(Purpose.VERSION), key(Purpose.VERSION)
    links = [keyring.entry(third.public, second), keyring.entry(second.public, ROOT)]
    bundle = Case(author=third).bundle()
    assert read(tab, bundle, jwks=Case().keys(*links)) == [["", "7"]]
    gone = (second.public.kid,)
    assert code(tab, bundle, jwks=Case().keys(*links, revoked=gone)) == "unvouched_key"
    assert code(tab, Case(author=second).bundle(), jwks=Case().keys(*links, revoked=gone)) == "revoked_key"
    assert code(tab, Case(author=second).bundle(), jwks=Case().keys(revoked=gone)) == "revoked_key"


def test_revocation_cannot_be_left_out_by_who_serves_the_keys(tab: Page) -> None:
    bundle = Case().bundle()
    assert code(tab, bundle, jwks=Case().keys(serial=2, revoked=(ACTIVATION.public.kid,))) == "revoked_key"
    seen = {f"sluicegate {ROOT.public.x}": "2"}
    assert code(tab, bundle, jwks=Case().keys(serial=1), store=seen) == "replayed"
    assert read(tab, bundle, jwks=Case().keys(serial=2), store=seen) == [["", "7"]]
    assert code(tab, bundle, jwks={"keys": Case().keys()["keys"]}) == "malformed"
    second = key(Purpose.VERSION)
    vouched = Case().keys(keyring.entry(second.public, ROOT))
    for statement, reason in (
        (said_of_keys(3, by=STRANGER), "unknown_key"),
        (said_of_keys(3, by=second), "unknown_key"),  # the root alone says what is revoked
        (said_of_keys(3)[:-4] + "AAAA", "signature"),
        (sign(b'{"serial":3,"revoked":[]}', ROOT, Type.CLIENT_RULES), "type"),
        (sign(b'{"serial":0,"revoked":[]}', ROOT, Type.KEY_SET), "replayed"),
        (sign(b'{"serial":3}', ROOT, Type.KEY_SET), "malformed"),
        (7, "malformed"),
    ):
        assert code(tab, bundle, jwks=vouched | {"sluicegate_statement": statement}) == reason


def test_key_of_one_purpose_is_not_believed_for_another(tab: Page) -> None:
    statement, rules = Case().statement(), sign(Case().rules(), ROOT, Type.CLIENT_RULES)
    assert code(tab, make_bundle(activation=rules, client_rules=statement, key=ACTIVATION)) == "type"
    assert code(tab, statement) == "type"
    document = sign(Case().rules(), ROOT)  # a version is signed by the same key
    assert code(tab, make_bundle(activation=statement, client_rules=document, key=ACTIVATION)) == "type"
    kid = {"kid": ROOT.public.kid}
    assert code(tab, forged(Case().bundle(), ACTIVATION_PEM, **kid)) == "unknown_key"


HEADERS: list[tuple[dict[str, object], str]] = [
    ({"alg": "none"}, "algorithm"),
    ({"alg": "HS256"}, "algorithm"),
    ({"alg": "EdDSA"}, "algorithm"),
    ({"alg": "ES256"}, "algorithm"),
    ({"jku": "https://example.org/keys"}, "header"),
    ({"jwk": ROOT.public.as_jwk()}, "header"),
    ({"x5u": "https://example.org/x"}, "header"),
    ({"crit": ["exp"], "exp": 1}, "header"),
    ({"typ": Type.BUNDLE.value + "x"}, "type"),
    ({"typ": "JWT"}, "type"),
]


@pytest.mark.parametrize(
    ("header", "reason"), [*HEADERS, ({"typ": Purpose.ACTIVATION.value}, "type")], ids=range(len(HEADERS) + 1)
)
def test_header_of_an_attackers_choice_is_refused_though_the_signature_fits(
    tab: Page, header: dict[str, object], reason: str
) -> None:
    assert code(tab, forged(Case().bundle(), ACTIVATION_PEM, **header)) == reason


def in_place_of(part: str, change: Callable[[str, bytes], str]) -> tuple[str, object]:
    """A bundle and its keys in which one inner JWS is another: ``change`` is given it and its signer's private key."""
    new = key(Purpose.ACTIVATION)
    statement, rules = Case().statement(), sign(Case().rules(), ROOT, Type.CLIENT_RULES)
    said, voucher = said_of_keys(1), keyring.entry(new.public, ROOT)
    if part == "statement":
        statement = change(statement, ACTIVATION_PEM)
    if part == "rules":
        rules = change(rules, ROOT_PEM)
    if part == "key set":
        said = change(said, ROOT_PEM)
    if part == "voucher":
        given = change(str(voucher.sluicegate_signature), ROOT_PEM)
        voucher = voucher.model_copy(update={"sluicegate_signature": given})
    keys: dict[str, object] = {**Case().keys(voucher), "sluicegate_statement": said}
    bundle = make_bundle(activation=statement, client_rules=rules, key=new if part == "voucher" else ACTIVATION)
    return bundle, keys


PARTS = ["statement", "rules", "key set", "voucher"]


@pytest.mark.parametrize("part", PARTS)
def test_inner_parts_of_an_attackers_header_are_refused_though_their_signatures_fit(tab: Page, part: str) -> None:
    """Whoever wrote it has the key that signs it: nothing but the form of the header is wrong."""
    bundle, keys = in_place_of(part, forged)
    assert read(tab, bundle, jwks=keys) == [["", "7"]]  # the control: the forger can sign
    for header, reason in HEADERS:
        bundle, keys = in_place_of(part, lambda compact, pem, header=header: forged(compact, pem, **header))
        assert code(tab, bundle, jwks=keys) == ("unvouched_key" if part == "voucher" else reason), header


@pytest.mark.parametrize("part", [*PARTS, "bundle"])
def test_public_key_used_as_a_shared_secret_is_refused(tab: Page, part: str) -> None:
    publics = {ROOT_PEM: ROOT.public.x, ACTIVATION_PEM: ACTIVATION.public.x}
    bundle, keys = in_place_of(part, lambda compact, pem: with_mac(compact, publics[pem]))
    if part == "bundle":
        bundle = with_mac(bundle, ACTIVATION.public.x)
    assert code(tab, bundle, jwks=keys) == ("unvouched_key" if part == "voucher" else "algorithm")


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
def test_statement_about_something_else_is_refused(tab: Page, changes: dict[str, Any], reason: str) -> None:
    assert code(tab, Case().bundle(**changes)) == reason


@pytest.mark.parametrize("jwks", [[], {}, {"keys": {}}, {"keys": [None]}], ids=str)
def test_what_is_no_set_of_keys_is_refused(tab: Page, jwks: object) -> None:
    assert code(tab, Case().bundle(), jwks=jwks) == "malformed"
