"""Statements that are written once do what the ORM does, with encrypted columns and the database's time too."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.forms.models import model_to_dict
from django.utils import timezone

from streaming import statement
from streaming.models import AuditSession, Conversation, Message

pytestmark = pytest.mark.django_db
SECRET = "Only the reader may know this."


def _message(**more: object) -> Message:
    made = Conversation.objects.create()
    return Message(conversation=made, role=Message.Role.USER, content=SECRET, metadata={"a": [1, "é"]}, **more)


def _raw(column: str, pk: object) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {column} FROM streaming_message WHERE id = %s",
            [Message._meta.pk.get_db_prep_value(pk, connection)],
        )
        return str(cursor.fetchone()[0])


def test_rows_are_inserted_as_the_orm_inserts_them() -> None:
    """Every column of both is the same, but for ids and salts; nothing lies there in clear."""
    ours, theirs = _message(), _message()
    theirs.created = ours.created
    second = _message(in_reply_to=ours)
    statement.insert([ours, second])
    Message.objects.bulk_create([theirs])
    skip = {"id", "conversation", "salt"}
    stored = [
        {name: value for name, value in Message.objects.filter(pk=one.pk).values()[0].items()
         if name not in {"id", "conversation_id", "salt"}}
        for one in (ours, theirs)
    ]  # fmt: skip
    assert stored[0] == stored[1]
    assert model_to_dict(Message.objects.get(pk=second.pk), exclude=skip)["in_reply_to"] == ours.pk
    assert SECRET not in _raw("content", ours.pk)
    ours.content = "changed"
    ours.save()  # an update: the object knows that it is stored
    assert Message.objects.filter(pk=ours.pk).count() == 1


def test_time_of_a_row_is_the_databases() -> None:
    """Whatever the object says."""
    session = AuditSession(id=uuid4(), heartbeat_at=timezone.now() - timedelta(days=1))
    statement.insert([session], now="heartbeat_at")
    stored = AuditSession.objects.get(pk=session.pk)
    assert abs(stored.heartbeat_at - timezone.now()) < timedelta(minutes=1)
    AuditSession.objects.update(heartbeat_at=timezone.now() - timedelta(days=1))
    assert statement.update(AuditSession, {"pk": str(session.pk)}, {"heartbeat_at": Now(), "released": 7}) == 1
    stored.refresh_from_db()
    assert abs(stored.heartbeat_at - timezone.now()) < timedelta(minutes=1)
    assert stored.released == 7


def test_only_rows_that_are_meant_are_changed() -> None:
    """Conditions hold together; a value may be one of another row's."""
    prompt, other = _message(), _message()
    statement.insert([prompt, other])
    session = AuditSession.objects.create(prompt=prompt)
    assert not statement.update(AuditSession, {"pk": session.pk, "state": "COMPLETE"}, {"error": "x"})
    assert not statement.update(AuditSession, {"pk": uuid4(), "state": "ACTIVE"}, {"error": "x"})
    of_the_session = statement.Of(AuditSession, str(session.pk), "prompt")
    changes = {"content": "100 % “new”", "metadata": {"b": None}, "status": Message.Status.BLOCKED}
    assert statement.update(Message, {"pk": of_the_session}, changes) == 1
    prompt.refresh_from_db()
    other.refresh_from_db()
    session.refresh_from_db()
    assert (prompt.content, prompt.metadata, prompt.status) == ("100 % “new”", {"b": None}, "blocked")
    assert (other.content, session.error) == (SECRET, "")
    assert "new" not in _raw("content", prompt.pk)
    assert not statement.update(Message, {"pk": statement.Of(AuditSession, session.pk, "answer")}, {"content": "x"})


def test_rows_are_read_as_the_orm_reads_them() -> None:
    """Whole rows, in order, opened; nothing is asked for where there is nothing to look for."""
    several = [_message(created=timezone.now() - timedelta(hours=n)) for n in range(3)]
    statement.insert(several)
    asked = {"pk": tuple(str(one.pk) for one in several), "role": Message.Role.USER}
    found = statement.rows(Message, asked, "created")
    assert [one.pk for one in found] == [one.pk for one in reversed(several)]
    assert [model_to_dict(one) for one in found] == [model_to_dict(one) for one in Message.objects.order_by("created")]
    assert found[0].content == SECRET
    assert statement.rows(Message, {"pk": ()}) == []
    assert statement.rows(Message, {"pk": uuid4()}) == []
