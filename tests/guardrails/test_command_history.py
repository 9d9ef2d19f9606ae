"""Steps on the command line are in the admin's history, with who and when; one that was refused is not."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from html import unescape
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from guardrails.models import CommandStep, Policy, PolicyVersion, Rollout
from tests.conftest import PASSWORD, Cast

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]

Row = Policy | PolicyVersion | Rollout
Line = tuple[str, str]
"""Who and what."""


def run(command: str, *args: object) -> None:
    call_command(command, *map(str, args), stdout=io.StringIO(), stderr=io.StringIO())


def brought(folder: Path, *words: str) -> Path:
    """A policy file."""
    guardrails = [{"kind": "keywords", "keywords": list(words)}]
    file = folder / "desk.json"
    file.write_text(json.dumps({"policy": "desk", "description": "", "guardrails": guardrails}))
    return file


def version(number: int) -> PolicyVersion:
    return PolicyVersion.objects.get(policy__name="desk", number=number)


@pytest.fixture
def history(admin_client: Client) -> Callable[[Row], list[Line]]:
    """What the admin's history page of a row says."""

    def shown(row: Row) -> list[Line]:
        address = reverse(f"admin:guardrails_{row._meta.model_name}_history", args=[row.pk])
        html = unescape(admin_client.get(address).content.decode())
        body = html.partition("<tbody>")[2].partition("</tbody>")[0]
        cells = [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[hd].*?</t[hd]>", body, re.S)
        ]
        assert all(str(timezone.now().year) in when for when in cells[::3])
        return list(zip(cells[1::3], cells[2::3], strict=True))

    return shown


History = Callable[[Row], list[Line]]


@pytest.mark.parametrize("named", [True, False], ids=["named", "nobody named"])
def test_it_works(tmp_path: Path, cast: Cast, history: History, named: bool) -> None:
    def by(name: str) -> list[str]:
        return ["--by", name] if named else []

    def who(name: str) -> str:
        return f"{name}, on the command line" if named else "command line"

    Group.objects.create(name="pilots")
    run("rules", "import", brought(tmp_path, "acme"), *by("author"))
    run("rules", "publish", "desk", *by("author"))
    run("rules", "sign", "desk", *by("signer"))
    run("rules", "activate", "desk", *by("operator"))
    run("rules", "import", brought(tmp_path, "acme", "other"), *by("author"))
    run("rules", "publish", "desk", *by("author"))
    run("rules", "sign", "desk", *by("signer"))
    run("rules", "rollout", "desk", "--percent", 10, "--group", "pilots", *by("operator"))
    run("rules", "rollout", "desk", "--percent", 30, *by("operator"))
    run("rules", "rollout", "desk", "--end", *by("operator"))
    run("rules", "activate", "desk", *by("operator"))
    run("rules", "rollback", "desk", *by("operator"))

    author, signer, operator = map(who, ("author", "signer", "operator"))
    assert history(Policy.objects.get(name="desk")) == [
        (author, "Draft saved from desk.json"),
        (author, "desk v1 published"),
        (author, "Draft saved from desk.json"),
        (author, "desk v2 published"),
    ]
    assert history(version(1)) == [
        (author, "desk v1 published"),
        (signer, "desk v1 signed"),
        (operator, "desk v1 activated"),
        (operator, "desk v1 activated: rolled back from version 2"),
    ]
    rolled = [
        (operator, "desk v2 is rolled out to 10 % of the conversations and the groups pilots"),
        (operator, "desk v2 is rolled out to 30 % of the conversations from now on"),
        (operator, "desk v2 is not rolled out any more"),
    ]
    published = [(author, "desk v2 published"), (signer, "desk v2 signed")]
    assert history(version(2)) == [*published, *rolled, (operator, "desk v2 activated")]
    assert history(Rollout.objects.get()) == rolled


def test_one_command_that_does_all_is_as_many_steps(tmp_path: Path, history: History) -> None:
    run("rules", "import", brought(tmp_path, "acme"), "--publish", "--sign", "--activate")
    assert [what for _, what in history(version(1))] == ["desk v1 published", "desk v1 signed", "desk v1 activated"]
    assert [what for _, what in history(Policy.objects.get())] == ["Draft saved from desk.json", "desk v1 published"]


def test_shadows_of_the_command_line_are_in_the_history(tmp_path: Path, history: History) -> None:
    run("rules", "import", brought(tmp_path, "acme"), "--publish", "--sign", "--activate")
    run("rules", "import", brought(tmp_path, "acme", "other"), "--publish", "--sign")
    run("shadow", "desk", 2)
    run("shadow", "desk", 2)  # it is already
    run("shadow", "desk", "--off")
    run("shadow", "desk", "--off")  # there is none
    lines = [line for line in history(version(2)) if "shadow" in line[1]]
    assert lines == [("command line", "desk v2 runs as shadow"), ("command line", "desk v2 is not the shadow any more")]


def test_refused_steps_are_not_in_the_history(tmp_path: Path, cast: Cast) -> None:
    run("rules", "import", brought(tmp_path, "acme"), "--publish")
    before = CommandStep.objects.count()
    for verb in (
        ("activate", "desk"),  # not signed
        ("rollback", "desk"),  # nothing is active
        ("publish", "desk"),  # no draft
        ("rollout", "desk", "--percent", "10"),
        ("rollout", "desk", "--end"),
        ("sign", "desk", "--by", cast.outsider.get_username()),
    ):
        with pytest.raises(CommandError):
            run("rules", *verb)
    assert CommandStep.objects.count() == before


def test_both_halves_of_a_history_are_one_by_time(tmp_path: Path, cast: Cast, history: History) -> None:
    run("rules", "import", brought(tmp_path, "acme"), "--publish")
    page = Client()
    assert page.login(username="signer", password=PASSWORD)
    began = datetime.now(tz=timezone.get_current_timezone())
    data = {"action": "sign", "_selected_action": [str(version(1).pk)]}
    page.post(reverse("admin:guardrails_policyversion_changelist"), data)
    run("rules", "activate", "desk")
    assert history(version(1)) == [
        ("command line", "desk v1 published"),
        ("signer", "desk v1 signed"),
        ("command line", "desk v1 activated"),
    ]
    times = [step.at for step in CommandStep.objects.filter(object_id=version(1).pk, done__startswith="desk v1 ")]
    assert times[0] < began < times[-1]


def test_history_is_for_those_who_see_the_row(tmp_path: Path, cast: Cast) -> None:
    run("rules", "import", brought(tmp_path, "acme"), "--publish")
    address = reverse("admin:guardrails_policyversion_history", args=[version(1).pk])
    cast.outsider.is_staff = True
    cast.outsider.save()
    for user, status in ((cast.outsider, 403), (cast.reviewer, 200)):
        client = Client()
        assert client.login(username=user.get_username(), password=PASSWORD)
        assert client.get(address).status_code == status
