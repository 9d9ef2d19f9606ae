"""The API under ``/v1/``: one OpenAPI document, one error shape.

The documentation page is rendered here from that document: the usual viewers load scripts from elsewhere or run
inline ones, and the page's Content-Security-Policy allows neither.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema

from streaming.api import audit, chat, check, docs_page, rules, stream
from streaming.api.errors import error_response, install
from streaming.api.gateway import anthropic, ollama, openai

_HEADERS: dict[str, tuple[str, str]] = {
    "401": ("WWW-Authenticate", "What to show: a key, as `Bearer`."),
    "429": ("Retry-After", "Seconds until a call is taken again."),
}
"""By status: the header that a refusal of ours always has; an upstream's, passed on by the gateway, may have none."""

_KEYS: dict[str, dict[str, str]] = {
    "Bearer": {"type": "http", "scheme": "bearer"},
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""Where a key may stand; where a stream token may, none is needed."""


def _security_of(operation: dict[str, list[dict[str, object]]]) -> list[dict[str, list[str]]]:
    with_token = any(one["name"] == "token" for one in operation.get("parameters", ()))
    return [*({name: list[str]()} for name in _KEYS), *([{}] if with_token else [])]


def _headers_of(status: int | str, *, required: bool) -> dict[str, object]:
    name, description = _HEADERS.get(str(status), ("", ""))
    header = {"description": description, "required": required, "schema": {"type": "string"}}
    return {"headers": {name: header}} if name else {}


class Api(NinjaAPI):
    """The document also says which headers a refusal has, where a key may stand, and what the gateway's third front
    answers."""

    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, object] | None = None
    ) -> OpenAPISchema:
        """The OpenAPI document."""
        schema = super().get_openapi_schema(path_prefix=path_prefix, path_params=path_params)
        # Ollama's clients are given a host, not a path: its calls stand beside ``/v1/`` and belong to this API.
        schema["paths"] |= ollama.api.get_openapi_schema()["paths"]
        for operations in schema["paths"].values():
            for operation in operations.values():
                ours = "gateway" not in operation.get("tags", ())
                if "security" in operation:
                    operation["security"] = _security_of(operation)
                # Not in place: the gateway's refusals are one object for all statuses.
                operation["responses"] = {
                    status: answer | _headers_of(status, required=ours)
                    for status, answer in operation["responses"].items()
                }
        schema["components"]["securitySchemes"] = {name: dict(scheme) for name, scheme in _KEYS.items()}
        return schema


api = Api(
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
api.add_router("", audit.router)
api.add_router("", openai.router)
api.add_router("", anthropic.router)


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Every call with its fields, from the OpenAPI document."""
    return docs_page.page(request, api.get_openapi_schema())


@csrf_exempt  # a program has no token of a form: it would be told that it may not, not that there is nothing
def nothing_here(request: HttpRequest) -> HttpResponse:
    """Everything else under ``/v1/`` answers in the API's own error shape."""
    return error_response(404, "There is nothing here.")
