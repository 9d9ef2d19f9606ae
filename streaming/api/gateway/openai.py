"""``POST /v1/chat/completions`` and ``GET /v1/models``: OpenAI's dialect.

Exists so that a client of that vendor, or of anything that speaks like it, needs another base URL and nothing else.
Protects the shapes that its library parses.
"""

from __future__ import annotations

import json
import time

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from ninja import Router

from streaming.api.auth import Answers, Key
from streaming.api.gateway.documented import ANSWER, LISTING, MESSAGES
from streaming.api.gateway.front import answer, listed
from streaming.api.gateway.wire import Front
from streaming.gateway.routes import models
from streaming.gateway.speak import Speaker
from streaming.gateway.speak_openai import OpenAISpeaker, understood
from streaming.gateway.walk_openai import OpenAIWalker
from streaming.gateway.walker import Json

router = Router(tags=["gateway"])


_written = json.JSONEncoder(ensure_ascii=False).encode
"""One encoder for every chunk."""


def sse(chunk: Json) -> bytes:
    """A chunk as an event."""
    return b"data: " + _written(chunk).encode(errors="replace") + b"\n\n"


def _speaker(body: Json, model: str, id_: str) -> Speaker:
    options = body.get("stream_options")
    include = isinstance(options, dict) and options.get("include_usage") is True
    return OpenAISpeaker(model, id_, int(time.time()), include_usage=include)


FRONT = Front(
    dialect="openai",
    walker=OpenAIWalker,
    understood=understood,
    speaker=_speaker,
    frame=sse,
    content_type="text/event-stream",
    heartbeat=b": waiting\n\n",
    done=b"data: [DONE]\n\n",
    passed_headers=("OpenAI-Beta",),
)


@router.post(
    "/chat/completions", auth=Answers(), summary="Chat completions, guarded (OpenAI's dialect)",
    openapi_extra=MESSAGES | ANSWER,
)  # fmt: skip
async def completions(request: HttpRequest) -> HttpResponseBase:
    """The request goes to the upstream when its prompt has passed; what comes back passes the gate."""
    return await answer(request, FRONT)


@router.get("/models", auth=Key("gateway"), summary="Models (OpenAI's dialect)", openapi_extra=LISTING)
async def listing(request: HttpRequest) -> HttpResponseBase:
    """Every model that is offered here: what upstreams of the dialect list, and what is configured of the others."""
    found, theirs = await listed(request, FRONT, "data")
    data: list[Json] = [
        {**entry, "id": f"{name}/{entry['id']}"}
        for name, entries in theirs.items()
        for entry in entries
        if isinstance(entry.get("id"), str)
    ]
    data += [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in models(found, theirs)]
    return JsonResponse({"object": "list", "data": data})
