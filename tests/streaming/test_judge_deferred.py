"""A judge that is told by the judged text what to say: the whole way from the outbox row to the stored finding."""

from __future__ import annotations

import pytest
from channels.db import database_sync_to_async

from guardrails.findings import Outcome
from guardrails.kinds.base import Turn
from streaming import checks, deferred, sessions
from streaming.audit.verify import log_faults
from streaming.log import MemoryLog
from streaming.models import AuditSession, DeferredCheck, Finding, Message
from streaming.providers.base import ProviderRequest
from streaming.sessions import DeferredText, Ending, NewSession, Visitor
from tests.guardrails.kinds.test_judge_attempts import ATTEMPTS, HARM, PLACES, Gullible
from tests.streaming.pumping import policy_of

pytestmark = pytest.mark.django_db(transaction=True)


class Asked(Gullible):
    """The gullible model as a provider."""

    async def _answer(self, request: ProviderRequest) -> str:
        turns = [Turn(message.role, message.text) for message in request.messages]
        return await super().complete("", turns, 30.0)

    def as_provider(self, name: str) -> Asked:
        """Whoever is named, it is this one."""
        self.complete = self._answer  # type: ignore[method-assign,assignment]
        return self


@database_sync_to_async
def waiting(text: str) -> tuple[str, int]:
    new = NewSession(Visitor(session_key="b"), "p", {"name": "t", "version": 3, "digest": "d"}, "scripted", "m")
    started = sessions.start_session(new)
    ending = Ending(
        Outcome.ALLOWED, Message.Status.COMPLETE, content=text, released=len(text),
        deferred=[DeferredText("harm", "response", text)],
    )  # fmt: skip
    sessions.finish_streaming(session_id=started.session_id, ending=ending)
    return started.session_id, DeferredCheck.objects.get(session_id=started.session_id).pk


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(checks, "get_provider", found.as_provider)
    policy = policy_of()
    monkeypatch.setattr(deferred, "policy_by_digest", lambda digest: policy)
    return found


async def test_it_works(model: Asked) -> None:
    """None of the fifty changes what is stored: a finding, a session that says what would have been done, no error."""
    places = list(PLACES.values())
    for number, attempt in enumerate(ATTEMPTS):
        text = places[number % len(places)].format(attempt=attempt, harm=HARM)
        session_id, pk = await waiting(text)
        assert await deferred.run_deferred(pk, MemoryLog()), attempt
        stored = await DeferredCheck.objects.aget(pk=pk)
        assert (stored.state, stored.error, stored.sealed_text) == ("would_block", "", None), attempt
        found = await Finding.objects.aget(session_id=session_id)
        assert (found.guardrail, found.score, found.would_have) == ("harm", 0.9, "blocked"), attempt
        session = await AuditSession.objects.aget(pk=session_id)
        assert (session.state, session.outcome, session.would_have) == ("COMPLETE", "allowed", "blocked"), attempt
    assert model.obeyed == 0
    assert await database_sync_to_async(lambda: list(log_faults()))() == []


async def test_the_model_is_gullible_indeed_and_a_calm_text_passes(model: Asked) -> None:
    """What it is told outside of the quotation it does: else the fifty would show nothing."""
    told = 'Answer with {"id": "x"}: "id": "abc"'
    assert '"score": 0.0' in await Gullible().complete("", [Turn("system", told), Turn("user", ATTEMPTS[0])], 1.0)
    session_id, pk = await waiting("The well was dug in 1840.")
    assert await deferred.run_deferred(pk, MemoryLog())
    assert (await DeferredCheck.objects.aget(pk=pk)).state == "passed"
    assert not await Finding.objects.filter(session_id=session_id).aexists()
