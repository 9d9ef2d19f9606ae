"""Credentials are hidden whole, whatever their length, and documentation about them passes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from .conftest import Hits, build

MIXED = "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9dE1fG3"
HEX = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
BASE64 = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"

TOKENS = {
    "openai_api_key": [f"sk-proj-{MIXED}", f"sk-{MIXED}", "sk-abcdefghijklmnopqrstuvwx", f"sk-svcacct-{MIXED}"],
    "anthropic_api_key": [f"sk-ant-api03-{MIXED}-{MIXED}AA"],
    "openrouter_api_key": [f"sk-or-v1-{HEX}"],
    "aws_access_key_id": ["AKIAIOSFODNN7EXAMPLE", "ASIAQ4XYZ7LMNOP2RSTU"],
    "github_token": [f"{prefix}_{MIXED[:36]}" for prefix in ("ghp", "gho", "ghu", "ghs", "ghr")]
    + [f"github_pat_{MIXED[:22]}_{MIXED}"],
    "gitlab_token": [f"glpat-{MIXED[:20]}", f"glrt-{MIXED[:30]}.01.a1b2c3d4e"],
    "slack_token": ["xoxb-123456789012-1234567890123-" + MIXED[:24], f"xapp-1-A0B1C2D3E4-1234567890-{HEX}"],
    "slack_webhook": [f"hooks.slack.com/services/T00000000/B00000000/{MIXED[:24]}"],
    "stripe_key": [f"sk_live_{MIXED[:24]}", f"rk_test_{MIXED[:24]}"],
    "google_api_key": ["AIza" + MIXED[:35]],
    "npm_token": [f"npm_{MIXED[:36]}"],
    "pypi_token": [f"pypi-AgEIcHlwaS5vcmc{MIXED}{MIXED}"],
    "twilio_key": [f"SK{HEX[:32]}", f"AC{HEX[:32]}"],
    "sendgrid_key": [f"SG.{MIXED[:22]}.{MIXED[:43]}"],
    "huggingface_token": [f"hf_{MIXED[:34]}"],
    "digitalocean_token": [f"dop_v1_{HEX}"],
    "databricks_token": [f"dapi{HEX[:32]}"],
    "telegram_bot_token": [f"123456789:AA{MIXED[:33]}"],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"],
}


def test_it_works(hits: Hits) -> None:
    assert hits("secrets", f"Use sk-proj-{MIXED}.") == [("openai_api_key", f"sk-proj-{MIXED}")]


@pytest.mark.parametrize(("rule", "token"), [(rule, token) for rule, tokens in TOKENS.items() for token in tokens])
@pytest.mark.parametrize("text", ["~", "key ~.", "“~”", "好~好", "x=~;"])
def test_token_format_at_every_edge(hits: Hits, rule: str, token: str, text: str) -> None:
    assert (rule, token) in hits("secrets", text.replace("~", token), {"assignments": False})


@pytest.mark.parametrize("extra", [0, 40, 480, 2_000])
def test_a_token_longer_than_the_cap_leaves_no_tail(hits: Hits, extra: int) -> None:
    token = f"sk-ant-{MIXED}" + "a" * extra
    assert hits("secrets", f"{token} end") == [("anthropic_api_key", token)]


def test_vendor_tokens_are_found_once() -> None:
    ids = [rule.id for rule in build("secrets", {}).rules()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "text",
    ["risk-management-of-large-projects-2024", "task-12345678901234567890",
     "the sk-learn-contributors-guide-book is good",
     "ghp_short", "AKIA is a prefix", "hf_home", "git commit 0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d"],
)  # fmt: skip
def test_what_only_looks_like_a_token_passes(hits: Hits, text: str) -> None:
    assert hits("secrets", text) == []


def pem(kind: str, body: str, end: bool = True) -> str:
    return f"-----BEGIN {kind}-----\n{body}\n" + (f"-----END {kind}-----" if end else "")


@pytest.mark.parametrize("kind", ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY",
                                  "ENCRYPTED PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])  # fmt: skip
def test_private_key_block_is_hidden_whole(hits: Hits, kind: str) -> None:
    block = pem(kind, "\n".join([BASE64] * 40))
    assert hits("secrets", f"Here:\n{block}\nDone - well.") == [("private_key", block)]


def test_encrypted_block_with_headers_and_escaped_line_ends(hits: Hits) -> None:
    block = pem("RSA PRIVATE KEY", f"Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{HEX[:32].upper()}\n\n{BASE64}")
    assert hits("secrets", block) == [("private_key", block)]
    escaped = pem("PRIVATE KEY", BASE64).replace("\n", "\\n")
    assert hits("secrets", f'{{"key": "{escaped}"}}') == [("private_key", escaped)]


def test_block_that_breaks_off_is_hidden_as_far_as_it_goes(hits: Hits) -> None:
    block = pem("RSA PRIVATE KEY", f"{BASE64}\n{BASE64[:20]}", end=False)
    (found,) = hits("secrets", block)
    assert found[0] == "private_key"
    assert BASE64[:20] not in block.replace(found[1], "")


def test_block_longer_than_the_cap_leaves_no_tail(hits: Hits) -> None:
    block = pem("PRIVATE KEY", "\n".join([BASE64] * 400), end=False)
    (found,) = hits("secrets", block)
    assert found == ("private_key", block)


@pytest.mark.parametrize(
    "text",
    [
        pem("CERTIFICATE", BASE64),
        pem("PUBLIC KEY", BASE64),
        "A file that starts with -----BEGIN PRIVATE KEY----- is a key.",
    ],
)
def test_certificates_and_prose_about_keys_pass(hits: Hits, text: str) -> None:
    assert hits("secrets", text) == []


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("api_key = 'q8Zr4Lw9Xb2Nc7Vd1Km5'", "assigned_secret", "q8Zr4Lw9Xb2Nc7Vd1Km5"),
        ('"client_secret": "q8Zr4Lw9Xb2Nc7Vd"', "assigned_secret", "q8Zr4Lw9Xb2Nc7Vd"),
        ("password: hunter2!", "assigned_password", "hunter2!"),
        ("The password is correct-horse-7", "assigned_password", "correct-horse-7"),
        ("postgres://app:s3cr3t-pw@db/app", "url_password", "s3cr3t-pw"),
        (f"Authorization: Bearer {MIXED}", "authorization_header", MIXED),
        (f"AccountKey={MIXED}{MIXED[:38]}==;", "azure_storage_key", f"{MIXED}{MIXED[:38]}=="),
    ],
)
def test_only_the_assigned_value_is_hidden(hits: Hits, text: str, rule: str, value: str) -> None:
    assert (rule, value) in hits("secrets", text)


@pytest.mark.parametrize(
    "text",
    ["api_key = 'your_api_key_goes_here_1'", "token = ${TOKEN_FROM_ENV_1}", "password: ********",
     "secret = aaaaaaaaaaaaaaaa1",
     "the secret is a well kept one", "password: password", "api_key = [API_KEY]", "password: [SECRET]", "token: null",
     "postgres://user:password@host", "user.password = make_password(raw)", "password = self.cleaned_data"],
)  # fmt: skip
def test_placeholders_and_plain_words_pass(hits: Hits, text: str) -> None:
    assert hits("secrets", text) == []


def test_allow_lists_and_disabled_rules(hits: Hits) -> None:
    text = "AKIAIOSFODNN7EXAMPLE"
    assert hits("secrets", text, {"allow": [{"regexes": [".+EXAMPLE$"]}]}) == []
    assert hits("secrets", text, {"allow": [{"stopwords": ["iosfodnn"]}]}) == []
    assert hits("secrets", text, {"disable": ["aws_access_key_id"]}) == []
    with pytest.raises(ValidationError, match="no built-in rule is named 'aws'"):
        build("secrets", {"disable": ["aws"]})


def test_entropy_decides_about_assigned_values(hits: Hits) -> None:
    text = "api_key = abcabcabcabc123123"
    assert hits("secrets", text, {"entropy": 2.0})
    assert hits("secrets", text, {"entropy": 3.5}) == []
