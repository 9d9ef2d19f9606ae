"""Thoughts of a model that come back without their signature.

Exists because a vendor signs its model's thoughts and refuses them when they come back with another text. The gateway
takes the signature off thoughts in which something was hidden; protects the rule that a conversation goes on all the
same: such thoughts stay away from the next request, which a vendor allows. Pure.
"""

from __future__ import annotations

from typing import cast

from streaming.gateway.walker import Json


def without_unsigned(body: Json) -> Json:
    """The request without blocks of thoughts whose signature is empty, where something else is said beside them."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    return {**body, "messages": [_signed(message) for message in messages]}


def _signed(message: object) -> object:
    if not isinstance(message, dict) or not isinstance(content := message.get("content"), list):
        return message
    kept = [part for part in content if not _unsigned(part)]
    return {**cast("Json", message), "content": kept} if kept and len(kept) < len(content) else message


def _unsigned(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "thinking" and part.get("signature") == ""
