"""What is read each time and built anew only when it has changed."""

from __future__ import annotations

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from guardrails.models import Policy
from guardrails.unchanged import MOST, Unchanged

pytestmark = pytest.mark.django_db


def _about(name: str) -> QuerySet[Policy]:
    return Policy.objects.filter(name=name).order_by()


def _queries(policies: Unchanged[Policy], name: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        policies.rows(name)
    return len(queries)


def test_same_objects_come_from_rows_that_are_the_same() -> None:
    """For one query; and others as soon as a column differs."""
    made = Policy.objects.create(name="one", description="as it was")
    policies = Unchanged(_about)
    (first,) = policies.rows("one")
    assert _queries(policies, "one") == 1
    assert policies.rows("one")[0] is first
    Policy.objects.filter(pk=made.pk).update(description="as it is")
    (second,) = policies.rows("one")
    assert (first.description, second.description) == ("as it was", "as it is")
    assert policies.rows("one")[0] is second


def test_what_is_gone_is_gone() -> None:
    """And what comes back is read."""
    policies = Unchanged(_about)
    assert policies.rows("one") == ()
    made = Policy.objects.create(name="one")
    assert [one.pk for one in policies.rows("one")] == [made.pk]
    assert policies.rows("“one” or '1' = '1'") == ()
    made.delete()
    assert policies.rows("one") == ()
    assert _queries(policies, "one") == 1


def test_row_that_changes_while_it_is_read_is_not_kept() -> None:
    """Nobody knows then which of its states the objects show."""
    Policy.objects.create(name="one", description="before")
    changed = False

    def about(name: str) -> QuerySet[Policy]:
        nonlocal changed
        if name == "one" and not changed:  # not the statement: that is asked for with a stand-in
            changed = True
            Policy.objects.update(description="after")
        return _about(name)

    policies = Unchanged(about)
    policies.rows("one")
    Policy.objects.update(description="before")  # as it was when it was first read
    assert policies.rows("one")[0].description == "before"


def test_no_more_is_kept_than_that() -> None:
    """Names come from callers."""
    policies = Unchanged(_about)
    Policy.objects.bulk_create(Policy(name=f"p{n}") for n in range(MOST + 5))
    for n in range(MOST + 5):
        policies.rows(f"p{n}")
    assert len(policies._kept) <= MOST
