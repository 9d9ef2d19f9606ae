"""What a model is shown of a conversation begins with a user's message, whatever the limit or a block has cut off."""

from __future__ import annotations

import pytest

from streaming import selectors
from streaming.models import Conversation, Message
from streaming.sessions import Visitor

pytestmark = pytest.mark.django_db
HERE = Visitor(session_key="browser")


def conversation_of(*said: tuple[str, str, str]) -> str:
    """Messages as role, text and status."""
    made = Conversation.objects.create(session_key="browser")
    for role, text, status in said:
        Message.objects.create(conversation=made, role=role, content=text, status=status)
    return str(made.pk)


def shown(conversation: str, limit: int = 40) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in selectors.history(HERE, conversation, limit)]


TALK = [(role, f"{role} {n}", "complete") for n in range(3) for role in ("user", "assistant")]


def test_it_works() -> None:
    assert shown(conversation_of(*TALK)) == [(role, text) for role, text, _ in TALK]


@pytest.mark.parametrize("limit", range(7))
def test_wherever_the_limit_cuts_a_user_begins(limit: int) -> None:
    found = shown(conversation_of(*TALK), limit)
    assert len(found) == limit - limit % 2
    assert [role for role, _ in found[:1]] in ([], ["user"])
    assert [text for _, text in found[-1:]] in ([], ["assistant 2"])


def test_an_answer_to_a_prompt_that_was_blocked_does_not_begin() -> None:
    blocked = conversation_of(("user", "secret", "blocked"), ("assistant", "no", "complete"), *TALK[:1])
    assert shown(blocked) == [("user", "user 0")]


def test_an_answer_without_text_leaves_two_prompts() -> None:
    found = shown(conversation_of(*TALK[:1], ("assistant", "", "error"), *TALK[2:3]), 2)
    assert found == [("user", "user 0"), ("user", "user 1")]
