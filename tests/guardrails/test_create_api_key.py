"""`create_api_key` prints a key once, alone on standard output, and refuses what makes no sense."""

from __future__ import annotations

import pytest
from django.core.management import CommandError, call_command

from guardrails.models import ApiKey
from guardrails.selectors import api_key_for

pytestmark = pytest.mark.django_db


def test_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_api_key", "shop")
    said = capsys.readouterr()
    key = api_key_for(said.out.strip())
    assert key is not None
    assert (key.name, key.scopes, key.policy, key.origins) == ("shop", ["check", "stream"], "", [])
    assert "not shown again" in said.err


@pytest.mark.usefixtures("demo_policy")
def test_every_option_reaches_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    call_command(
        "create_api_key", "shop", "--scope=rules", "--scope=audit", "--policy=demo", "--origin=https://shop.example"
    )
    key = api_key_for(capsys.readouterr().out.strip())
    assert key is not None
    assert (key.scopes, key.policy, key.origins) == (["rules", "audit"], "demo", ["https://shop.example"])


def test_all_means_every_scope() -> None:
    call_command("create_api_key", "shop", "--scope=all")
    assert ApiKey.objects.get().scopes == ["check", "stream", "rules", "gateway", "audit"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["shop"], "already"), (["other", "--policy=nope"], "no policy"), (["other", "--scope=nope"], "invalid choice")],
)
def test_refusal_makes_no_key(arguments: list[str], words: str) -> None:
    call_command("create_api_key", "shop")
    with pytest.raises(CommandError, match=words) as refused:
        call_command("create_api_key", *arguments)
    assert refused.value.returncode == 1
    assert ApiKey.objects.count() == 1
