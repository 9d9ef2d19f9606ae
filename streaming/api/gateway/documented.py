"""What the OpenAPI document says of the gateway's calls.

The vendors describe their dialects; what stands here is what this server itself looks at. Everything else is passed on.
"""

from __future__ import annotations

_MESSAGE = {"type": "object", "properties": {"role": {"type": "string"}, "content": {}}, "required": ["role"]}
MESSAGES: dict[str, object] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "title": "GatewayIn",
                    "description": "A request of the dialect; fields that are not named here are passed on.",
                    "required": ["model", "messages"],
                    "properties": {
                        "model": {"type": "string", "minLength": 1},
                        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
                        "stream": {"type": ["boolean", "null"]},
                    },
                }
            }
        },
    }
}
_OBJECT = {"schema": {"type": "object"}}
_REFUSED = {"description": "Refused, in the dialect's own shape", "content": {"application/json": _OBJECT}}
_STATUSES = (400, 401, 403, 404, 413, 415, 422, 429, 500, 502, 503, 504)


def responses(stream: str) -> dict[str, object]:
    """Of a call that answers: the answer, whole or streamed, and refusals in the dialect's shape."""
    content = {"application/json": _OBJECT, stream: {}}
    answered = {200: {"description": "The answer, in the dialect's own shape", "content": content}}
    return {"responses": answered | dict.fromkeys(_STATUSES, _REFUSED)}


ANSWER = responses("text/event-stream")
LISTING = responses("application/json")
