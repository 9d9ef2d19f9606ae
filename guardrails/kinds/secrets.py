"""Credentials: tokens by their vendors' published formats, private key blocks, and values assigned to telling names.

Protects the rule that a key is hidden whole: lengths are lower bounds with an open end, so that a token that grows
(vendors reserve that right) leaves no tail behind; a private key block that is cut off is hidden as far as it goes.
The formats are written from the vendors' documentation; rule packs of other projects are imported, not copied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field, Strict, field_validator, model_validator

from guardrails.kinds.base import Config, Example, Kind, Texts
from guardrails.kinds.regex import Allow, PatternRules, refuse_duplicates
from guardrails.patterns.behind import found_behind
from guardrails.patterns.rule import PEM_CAP, Rule
from guardrails.patterns.validators import Lacks, Matches, MinEntropy, all_of
from guardrails.performance import Family, PerformanceCharacteristics, PerformanceClass

LONG_CAP = 2_048
"""Cap of formats that carry claims (JWT): their parts have no useful upper bound."""

_ALNUM = "A-Za-z0-9"
_QUOTED = r"[\"'`]?"
_ASSIGN = rf"{_QUOTED}\s{{0,3}}(?::=|=>|[:=]|\sis\s|\sis:)\s{{0,3}}{_QUOTED}"

_SEGMENT = "(?:[A-Za-z0-9]{4,15}|[b-zA-Z0-9][A-Za-z0-9]{2}|[A-Za-np-z0-9][A-Za-z0-9]|[A-Za-z0-9])"
"""The first part of a hyphenated `sk-` key, unless it is `ant` or `or`, which have rules of their own."""

VENDOR_FORMATS: tuple[tuple[str, str], ...] = (
    (
        "openai_api_key",
        r"sk-(?:(?:proj|svcacct|admin|live|test)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{20}[A-Za-z0-9_-]*"
        rf"|{_SEGMENT}[_-](?:[A-Za-z0-9]{{1,15}}[_-]){{0,3}}[A-Za-z0-9]{{16}}[A-Za-z0-9_-]*)",
    ),
    ("anthropic_api_key", r"sk-ant-[A-Za-z0-9_-]{16,}"),
    ("openrouter_api_key", r"sk-or-v[0-9]-[A-Za-z0-9]{32,}"),
    ("groq_api_key", r"gsk_[A-Za-z0-9]{40,}"),
    ("xai_api_key", r"xai-[A-Za-z0-9]{40,}"),
    ("perplexity_api_key", r"pplx-[A-Za-z0-9]{40,}"),
    ("replicate_api_token", r"r8_[A-Za-z0-9]{37,}"),
    ("huggingface_token", r"(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    ("aws_access_key_id", r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}"),
    ("aws_bedrock_api_key", r"ABSK[A-Za-z0-9+/]{64,}={0,2}"),
    ("github_token", r"gh[opurs]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}"),
    ("gitlab_token", r"gl(?:pat|ptt|cbt|imt|rt|dt|ft|oas|soat|agent|ffct)-[A-Za-z0-9_-]{20,}(?:\.[0-9a-z]{2,12}){0,2}"),
    ("slack_token", r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}"),
    ("slack_webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"),
    ("stripe_key", r"(?:sk|rk)_(?:live|test|prod)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/]{24,}={0,2}"),
    ("google_api_key", r"AIza[A-Za-z0-9_-]{35}"),
    ("google_oauth", r"GOCSPX-[A-Za-z0-9_-]{24,}|ya29\.[A-Za-z0-9_-]{20,}"),
    ("npm_token", r"npm_[A-Za-z0-9]{36,}"),
    ("pypi_token", r"pypi-AgE[A-Za-z0-9_-]{32,}"),
    ("rubygems_token", r"rubygems_[0-9a-f]{48}"),
    ("twilio_key", r"(?:SK|AC)[0-9a-f]{32}"),
    ("sendgrid_key", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,}"),
    ("mailgun_key", r"key-[0-9a-f]{32}"),
    ("mailchimp_key", r"[0-9a-f]{32}-us[0-9]{1,2}"),
    ("digitalocean_token", r"do[opr]_v1_[0-9a-f]{64}"),
    ("shopify_token", r"shp(?:at|ca|pa|ss|tka)_[0-9A-Fa-f]{32}"),
    ("square_token", r"sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{22,}|EAAA[A-Za-z0-9_-]{60}"),
    ("databricks_token", r"dapi[0-9a-f]{32}(?:-[0-9])?"),
    ("telegram_bot_token", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),
    ("linear_api_key", r"lin_api_[A-Za-z0-9]{40,}"),
    ("notion_token", r"ntn_[A-Za-z0-9]{40,}"),
    ("postman_api_key", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    ("doppler_token", r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}"),
    ("vault_token", r"hv[sbr]\.[A-Za-z0-9_-]{24,}"),
    ("age_secret_key", r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}"),
)
"""Rule id and pattern of each published token format; none of them may follow a letter or digit."""

PEM_EDGE = r"-{4,5}\s?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?\s?-{4,5}"
PEM_END = PEM_EDGE.replace("BEGIN", "END")
PEM_BODY = r"[A-Za-z0-9+/=\s\\]"
PEM_HEADERS = r"(?:(?:\s|\\[nr]){1,4}[A-Z][A-Za-z-]{2,30}: [^\n\\]{1,160}){0,6}(?:\s|\\[nr]){0,6}"
"""``Proc-Type:`` and the like, of encrypted and armoured blocks; line ends may be escaped, as in JSON."""


def _private_key() -> Rule:
    """A whole block, or one that breaks off after at least sixteen characters of key material."""
    return Rule(
        id="private_key",
        pattern=rf"{PEM_EDGE}{PEM_HEADERS}(?:[^-]{{0,64}}{PEM_END}|[A-Za-z0-9+/]{{16}}{PEM_BODY}*(?:{PEM_END})?)",
        cap=PEM_CAP,
        placeholder="[PRIVATE_KEY]",
        category="private_key",
    )


_not_a_placeholder = Lacks(
    r"your|example|placeholder|changeme|redacted|dummy|sample|insert|replace|xxxx|\*\*\*|\.\.\."
    r"|^(?:password|passwd|passphrase|pass|pwd|secret|token|null|none|true|false)$|^(?:process\.env|os\.environ|env\.|\$|%|<|\{)"
)
"""What stands in documentation instead of a secret is none."""


def _formats() -> tuple[Rule, ...]:
    named = (found_behind(Rule(id=name, pattern=form, not_after=_ALNUM)) for name, form in VENDOR_FORMATS)
    keys = (replace(rule, placeholder="[API_KEY]", category="api_key") for rule in named)
    tokens = (
        found_behind(
            Rule(
                "jwt",
                r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*",
                not_after=_ALNUM,
                cap=LONG_CAP,
            )
        ),
        found_behind(
            Rule(
                "authorization_header",
                rf"\bauthorization{_QUOTED}\s{{0,2}}[:=]\s{{0,2}}{_QUOTED}(?:bearer|basic|token)\s{{1,2}}([A-Za-z0-9._~+/=-]{{12,}})",
                ignore_case=True,
                secret_group=1,
                validator=_not_a_placeholder,
            )
        ),
    )
    settings = (
        Rule("azure_storage_key", r"AccountKey=([A-Za-z0-9+/]{86}==)", ignore_case=True, secret_group=1),
        Rule(
            "aws_secret_access_key",
            rf"aws[_\s.-]?secret[_\s.-]?(?:access[_\s.-]?)?key{_ASSIGN}([A-Za-z0-9+/]{{40}})",
            ignore_case=True,
            secret_group=1,
            not_before="A-Za-z0-9+/=",
        ),
        Rule(
            "url_password",
            r"://[^\s:/@]{1,64}:([^\s/@]{3,128})@",
            secret_group=1,
            validator=_not_a_placeholder,
        ),
    )
    return (
        *keys,
        *(replace(rule, placeholder="[TOKEN]", category="token") for rule in tokens),
        *(replace(rule, placeholder="[SECRET]", category="secret") for rule in settings),
    )


def _assignments(entropy: float) -> tuple[Rule, ...]:
    """A telling name, an assignment, a value that looks random. Passwords are shorter and less random than keys."""
    names = (
        r"(?:api|access|auth|secret|private|signing|encryption|master)[\s_.-]?(?:key|token|secret)|client[\s_.-]?secret"
        "|secret|token|credentials?"
    )
    key = Rule(
        id="assigned_secret",
        pattern=rf"(?:{names}){_ASSIGN}([A-Za-z0-9_+/=.~-]{{12,}})",
        ignore_case=True,
        secret_group=1,
        validator=all_of(Matches("[0-9]"), MinEntropy(entropy), _not_a_placeholder),
    )
    password = Rule(
        id="assigned_password",
        pattern=rf"(?:password|passwd|passphrase|pwd){_ASSIGN}([^\s\"'`,;<>\[\](){{}}]{{6,}})",
        ignore_case=True,
        secret_group=1,
        validator=all_of(
            Matches("[A-Za-z]"), Matches("[^A-Za-z._:-]"), MinEntropy(min(entropy, 2.0)), _not_a_placeholder
        ),
    )
    return tuple(replace(rule, placeholder="[SECRET]", category="secret") for rule in (key, password))


class SecretsConfig(Config):
    """Parameters of the `secrets` kind."""

    tokens: bool = Field(default=True, description="Token formats that vendors have published.")
    private_keys: bool = Field(default=True, description="PEM and PGP private key blocks.")
    assignments: bool = Field(default=True, description="Random-looking values assigned to names such as `api_key`.")
    entropy: float = Field(
        default=3.0,
        ge=0,
        le=8,
        description="Bits per character that an assigned value must exceed (passwords: 2 at most).",
    )
    disable: Texts = Field(default=(), description="Ids of built-in rules that are left out.")
    allow: Annotated[tuple[Allow, ...], Strict(False)] = Field(
        default=(), description="Allow-lists that hold for every rule of this guardrail."
    )
    rules: PatternRules = Field(default=(), description="Further rules, for instance an imported pack.")

    _unique = field_validator("rules")(refuse_duplicates)

    @field_validator("disable")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = {rule.id for rule in (*_formats(), _private_key(), *_assignments(0))}
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"no built-in rule is named {unknown[0]!r}")
        return value

    @model_validator(mode="after")
    def _something(self) -> SecretsConfig:
        if not (self.tokens or self.private_keys or self.assignments or self.rules):
            raise ValueError(
                "nothing is looked for: turn on `tokens`, `private_keys` or `assignments`, or give `rules`"
            )
        return self


class SecretsKind(Kind[SecretsConfig]):
    """Credentials."""

    name = "secrets"
    family = Family.PATTERN
    description = "API keys and tokens of known formats, private key blocks, random values assigned to telling names."
    performance = PerformanceCharacteristics(
        PerformanceClass.INSTANT, 0.01, 0.2, 2.0, cacheable=True, cache_seconds=3600, supports_streaming=True
    )
    Config = SecretsConfig
    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            hits=(
                "use sk-proj-aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW",
                "AKIAQ4XYZ7LMNOP2RSTU is the id",
                "ghp_" + "a1B2c3D4e5F6g7H8i9" * 2,
                "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PRIVATE KEY-----",
                "api_key = 'q8Zr4Lw9Xb2Nc7Vd1Km5'",
                "The password is hunter2!",
                "postgres://app:s3cr3t-pw@db.internal/app",
            ),
            passes=(
                "risk-management-of-large-projects-2024",
                "api_key = 'your_api_key_goes_here_1'",
                "the secret is out",
                "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
                "https://example.com:8080/path",
                "api_key = [API_KEY]",
            ),
        ),
        Example({"assignments": False}, hits=("npm_" + "a1B2" * 9,), passes=("api_key = 'q8Zr4Lw9Xb2Nc7Vd1Km5'",)),
    )

    def rules(self) -> tuple[Rule, ...]:
        """The built-in rules that are on, then those given in the configuration."""
        config = self.config
        built_in = [
            *(_formats() if config.tokens else ()),
            *((_private_key(),) if config.private_keys else ()),
            *(_assignments(config.entropy) if config.assignments else ()),
        ]
        kept = [rule for rule in built_in if rule.id not in config.disable]
        kept += [rule.rule("secret") for rule in config.rules]
        if not config.allow:
            return tuple(kept)
        shared = tuple(allow.validator() for allow in config.allow)
        return tuple(replace(rule, validator=all_of(rule.validator, *shared)) for rule in kept)
