"""``POST /api/chat`` and ``GET /api/tags``: Ollama's dialect.

Exists so that a client of Ollama needs another host and nothing else. Protects two habits: a request that does not
say so is streamed, and a stream is lines of JSON, whatever its reader takes for the end of a line.
"""

from __future__ import annotations

import json
import time

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from ninja import NinjaAPI

from streaming.api.auth import Answers, Key
from streaming.api.errors import install
from streaming.api.gateway.documented import LISTING, MESSAGES, responses
from streaming.api.gateway.front import answer, listed
from streaming.api.gateway.wire import Front
from streaming.gateway.routes import models
from streaming.gateway.speak import Speaker
from streaming.gateway.speak_ollama import OllamaSpeaker, understood
from streaming.gateway.walk_ollama import OllamaWalker
from streaming.gateway.walker import Json

api = NinjaAPI(title="Sluicegate (Ollama)", version="1", docs_url=None, openapi_url=None, urls_namespace="ollama")
install(api)


_LINE_ENDS = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"})
"""What ends a line for readers that go by Unicode, the official library among them; JSON leaves them as they are."""


def line(chunk: Json) -> bytes:
    """A chunk as a line."""
    return json.dumps(chunk, ensure_ascii=False).translate(_LINE_ENDS).encode(errors="replace") + b"\n"


def _speaker(body: Json, model: str, id_: str) -> Speaker:
    return OllamaSpeaker(model, id_, int(time.time()))


FRONT = Front(
    dialect="ollama",
    walker=OllamaWalker,
    understood=understood,
    speaker=_speaker,
    frame=line,
    content_type="application/x-ndjson",
    heartbeat=line({"message": {"role": "assistant", "content": ""}, "done": False}),  # a line, or readers stumble
    streams=True,
)


@api.post(
    "/chat", auth=Answers(), summary="Chat, guarded (Ollama's dialect)",
    openapi_extra=MESSAGES | responses("application/x-ndjson"), tags=["gateway"],
)  # fmt: skip
async def chat(request: HttpRequest) -> HttpResponseBase:
    """The request goes to the upstream when its prompt has passed; what comes back passes the gate."""
    return await answer(request, FRONT)


@api.get("/tags", auth=Key("gateway"), summary="Models (Ollama's dialect)", openapi_extra=LISTING, tags=["gateway"])
async def tags(request: HttpRequest) -> HttpResponseBase:
    """Every model that is offered here: what upstreams of the dialect list, and what is configured of the others."""
    known, theirs = await listed(request, FRONT, "models")
    found: list[Json] = [
        {**entry, "name": f"{name}/{model}", "model": f"{name}/{model}"}
        for name, entries in theirs.items()
        for entry in entries
        if isinstance(model := entry.get("model") or entry.get("name"), str)
    ]
    found += [{"name": name, "model": name, "details": {"family": owner}} for name, owner in models(known, theirs)]
    return JsonResponse({"models": found})
