"""The API under ``/v1/``: one OpenAPI document, one error shape.

The documentation page is rendered here from that document: the usual viewers load scripts from elsewhere or run
inline ones, and the page's Content-Security-Policy allows neither.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from ninja import NinjaAPI

from streaming.api import chat, check, rules, stream
from streaming.api.errors import error_response, install
from streaming.api.gateway import anthropic, openai

api = NinjaAPI(
    title="Sluicegate",
    version="1",
    description="Guardrails for streaming LLM output.",
    docs_url=None,
    openapi_url="/openapi.json",
    urls_namespace="v1",
)
install(api)
api.add_router("", check.router)
api.add_router("", chat.router)
api.add_router("", stream.router)
api.add_router("", rules.router)
api.add_router("", openai.router)
api.add_router("", anthropic.router)


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Every call with its fields, from the OpenAPI document."""
    schema = api.get_openapi_schema()
    calls = [
        {"method": method.upper(), "path": path, **operation}
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    shapes = schema.get("components", {}).get("schemas", {})
    return render(request, "api/docs.html", {"info": schema["info"], "calls": calls, "shapes": shapes})


def nothing_here(request: HttpRequest) -> HttpResponse:
    """Everything else under ``/v1/`` answers in the API's own error shape."""
    return error_response(404, "There is nothing here.")
