"""Stored text: in clear in no column, readable with any key that stands, and said so where none opens it."""

from __future__ import annotations

from io import StringIO

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from django.db import connection

from streaming.models import Conversation, Message
from streaming.texts import CANNOT_BE_OPENED, MARK

pytestmark = pytest.mark.django_db
OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
TEXT = "the gate keeper's words"


class Settings:
    SLUICEGATE_TEXT_KEYS: list[str]


def message(content: str = TEXT, **metadata: object) -> Message:
    return Message.objects.create(
        conversation=Conversation.objects.create(), role="assistant", content=content, metadata=metadata
    )


def columns() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM streaming_message")
        return [str(value) for row in cursor.fetchall() for value in row]


def test_it_works() -> None:
    stored = message(thinking="quiet thoughts", redactions=[[3, "[SSN]"]])
    found = Message.objects.get(pk=stored.pk)
    assert (found.content, found.metadata) == (TEXT, {"thinking": "quiet thoughts", "redactions": [[3, "[SSN]"]]})
    assert not any("keeper" in column or "thoughts" in column for column in columns())


def test_every_way_of_writing_encrypts() -> None:
    first = message("")
    Message.objects.filter(pk=first.pk).update(content=TEXT, metadata={"a": TEXT})
    Message.objects.bulk_create([Message(conversation=first.conversation, role="user", content=TEXT)])
    second = Message.objects.exclude(pk=first.pk).get()
    second.content += " and more"
    Message.objects.bulk_update([second], ["content"])
    assert [m.content for m in Message.objects.order_by("content").all() if m.content] != []
    assert {m.content for m in Message.objects.all()} == {TEXT, f"{TEXT} and more"}
    assert not any("keeper" in column for column in columns())


def test_empty_text_can_be_asked_for_and_the_same_text_never_looks_the_same() -> None:
    message("")
    message()
    message()
    assert Message.objects.exclude(content="").count() == 2
    assert len({column for column in columns() if column.startswith(MARK)}) == 2


@pytest.mark.parametrize("content", ["", TEXT])
def test_what_stands_beside_a_text_outlives_a_key_that_is_missing_for_a_while(settings: Settings, content: str) -> None:
    """Also where there is no text to tell by: nothing that is read and written back wipes it, and rotating stops."""
    settings.SLUICEGATE_TEXT_KEYS = [OLD]
    stored = message(content, said=TEXT, provider="p")
    before = columns()
    settings.SLUICEGATE_TEXT_KEYS = [NEW]
    with pytest.raises(CommandError, match="cannot be opened"):
        call_command("audit", "rotate", stdout=StringIO())
    assert columns() == before
    found = Message.objects.get()
    assert found.metadata == {}
    found.save(update_fields=["metadata"])
    Message.objects.bulk_update([found], ["metadata"])
    Message.objects.update(metadata=found.metadata)
    settings.SLUICEGATE_TEXT_KEYS = [NEW, OLD]
    assert Message.objects.get(pk=stored.pk).metadata == {"said": TEXT, "provider": "p"}


@pytest.mark.parametrize("text", [MARK, f"{MARK}abc", "ü" * 1000, "\u2028\n", "{}"])
def test_any_text_comes_back_as_it_was(text: str) -> None:
    assert Message.objects.get(pk=message(text, said=text).pk).content == text
    assert Message.objects.get().metadata == {"said": text}


def test_a_key_can_be_rotated(settings: Settings) -> None:
    settings.SLUICEGATE_TEXT_KEYS = [OLD]
    message(said=TEXT)
    settings.SLUICEGATE_TEXT_KEYS = [NEW, OLD]
    assert Message.objects.get().content == TEXT
    out = StringIO()
    call_command("audit", "rotate", stdout=out)
    assert out.getvalue() == "1 texts encrypted anew\n"
    settings.SLUICEGATE_TEXT_KEYS = [NEW]
    assert Message.objects.get().content == TEXT
    assert Message.objects.get().metadata == {"said": TEXT}


def test_a_text_that_no_key_opens_says_so_and_is_not_overwritten(settings: Settings) -> None:
    settings.SLUICEGATE_TEXT_KEYS = [OLD]
    message(said=TEXT)
    before = columns()
    settings.SLUICEGATE_TEXT_KEYS = [NEW]
    found = Message.objects.get()
    assert (found.content, found.metadata) == (CANNOT_BE_OPENED, {})
    with pytest.raises(CommandError, match="cannot be opened"):
        call_command("audit", "rotate", stdout=StringIO())
    assert columns() == before
    settings.SLUICEGATE_TEXT_KEYS = [NEW, OLD]
    assert Message.objects.get().content == TEXT
