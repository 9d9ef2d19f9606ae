"""``POST /v1/messages``: Anthropic's dialect.

Exists so that a client of that vendor needs another base URL and nothing else. Protects the shapes that its library
parses: every event is named, and a refusal says why.
"""

from __future__ import annotations

import json
import time

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import Router

from streaming.api.auth import Answers
from streaming.api.gateway.documented import ANSWER, MESSAGES
from streaming.api.gateway.front import answer
from streaming.api.gateway.wire import Front
from streaming.gateway.speak import Speaker
from streaming.gateway.speak_anthropic import AnthropicSpeaker, understood
from streaming.gateway.walk_anthropic import AnthropicWalker
from streaming.gateway.walker import Json

router = Router(tags=["gateway"])


def sse(chunk: Json) -> bytes:
    """A chunk as a named event."""
    kind = str(chunk.get("type", "message")).replace("\n", " ").replace("\r", " ")
    data = json.dumps(chunk, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode(errors="replace")


def _speaker(body: Json, model: str, id_: str) -> Speaker:
    return AnthropicSpeaker(model, id_, int(time.time()))


FRONT = Front(
    dialect="anthropic",
    walker=AnthropicWalker,
    understood=understood,
    speaker=_speaker,
    frame=sse,
    content_type="text/event-stream",
    heartbeat=sse({"type": "ping"}),
    passed_headers=("anthropic-version", "anthropic-beta"),
)


@router.post(
    "/messages", auth=Answers(), summary="Messages, guarded (Anthropic's dialect)",
    openapi_extra=MESSAGES | ANSWER,
)  # fmt: skip
async def messages(request: HttpRequest) -> HttpResponseBase:
    """The request goes to the upstream when its prompt has passed; what comes back passes the gate."""
    return await answer(request, FRONT)
