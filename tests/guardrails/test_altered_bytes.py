"""Whoever has the database changes one byte of what was signed: nothing of it runs, and the reason says what it is.

Every byte of a version's canonical text, of its signature, of the statement that it is active, and of the signature
over its client rules; each as a row that a process meets which has loaded nothing so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from guardrails import loading, selectors, services
from guardrails.loading import PolicyUnavailable
from guardrails.models import PolicyVersion
from tests.conftest import forget_policies

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("forgetful")]

TRIGGERS = ("guardrails_version_stays", "guardrails_publication_stays", "guardrails_activation_stays")


def installed() -> PolicyVersion:
    rule: dict[str, Any] = {"name": "w", "kind": "keywords", "client": True, "action": "redact", "keywords": ["acme"]}
    return services.install(document={"policy": "p", "guardrails": [rule]})[0]


def changes_of(text: str) -> Iterator[str]:
    for at, char in enumerate(text):
        yield text[:at] + ("A" if char != "A" else "B") + text[at + 1 :]
        if at % 20 == 0:
            yield text[:at] + text[at + 1 :]


def stored(table: str, column: str, row: int, values: Iterator[str]) -> Iterator[str]:
    """Each value in turn, stored as somebody would who has the database: triggers are no obstacle to them."""
    with connection.cursor() as cursor:
        for trigger in TRIGGERS:
            cursor.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for value in values:
            cursor.execute(f"UPDATE guardrails_{table} SET {column} = %s WHERE {row_of(table)} = %s", [value, row])
            assert cursor.rowcount == 1
            if table != "publication":  # whose rows are verified each time
                forget_policies()
            yield value


def row_of(table: str) -> str:
    return "version_id" if table == "publication" else "id"


def refused(loads: Any) -> tuple[str, str]:
    with pytest.raises(PolicyUnavailable) as error:
        loads("p")
    return error.value.reason, str(error.value)


def test_it_works() -> None:
    """The control: as it was stored it is loaded, again and again."""
    version = installed()
    for _ in stored("policyversion", "canonical", version.pk, iter([version.canonical] * 2)):
        assert selectors.active_policy("p").digest == version.digest
        assert selectors.client_bundle("p").digest == version.digest


@pytest.mark.parametrize(
    ("column", "reason", "words"),
    [("canonical", "altered", "was altered after it was signed"), ("signature", "untrusted", "is not trusted: ")],
)
def test_every_byte_of_a_version_counts_at_load(column: str, reason: str, words: str) -> None:
    version = installed()
    text = getattr(version, column)
    for _ in stored("policyversion", column, version.pk, changes_of(text)):
        why, said = refused(selectors.active_policy)
        assert (why, words in said) == (reason, True)
    (info,) = selectors.policy_choices()
    assert (info.healthy, words in info.error) == (False, True)


def test_every_byte_of_the_statement_that_it_is_active_counts_at_load() -> None:
    version = installed()
    (activation,) = version.activations.all()
    for _ in stored("activation", "statement", activation.pk, changes_of(activation.statement)):
        why, said = refused(selectors.active_policy)
        assert (why, "its activation statement is not trusted: " in said) == ("untrusted", True)
    assert refused(selectors.client_bundle) == (why, said)


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("column", "reason", "words"),
    [
        ("client_signature", "untrusted", "the client rules of p v1 are not trusted: "),
        ("client_rules", "altered", "the client rules of p v1 were altered after they were signed"),
        ("client_digest", "altered", "the client rules of p v1 were altered after they were signed"),
    ],
)
def test_every_byte_of_the_client_rules_counts_and_the_server_guards_on(
    column: str, reason: str, words: str, step: int
) -> None:
    """Of texts of many thousand bytes one in 37 is changed, and their first and last 150; the long test changes all."""
    version = installed()
    changes = list(changes_of(getattr(version.publication, column)))
    changes = [one for n, one in enumerate(changes) if n % step == 0 or n < 150 or n >= len(changes) - 150]
    found: Counter[str] = Counter()
    for _ in stored("publication", column, version.pk, iter(changes)):
        why, said = refused(selectors.client_bundle)
        assert (why, words in said) == (reason, True)
        found[why] += 1
    assert found.total() > 50
    assert selectors.active_policy("p").digest == version.digest
    assert loading.kept(version.digest) is not None
