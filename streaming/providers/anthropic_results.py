"""What a tool that the vendor ran itself returned, in words that a reader can be shown.

Exists because every such tool has a result of its own shape (search hits, fetched pages, programme output, texts of
an MCP server) and new ones come. Protects the reader from the opaque parts: encrypted passages are never shown. Pure.
"""

from __future__ import annotations

import json

from streaming.core.events import ProviderToolResult
from streaming.providers.reading import Document, is_object, mended, string


def tool_result(block: Document) -> ProviderToolResult:
    """The result of a ``…_tool_result`` block, or its error."""
    call, content = mended(block.get("tool_use_id")), block.get("content")
    if is_object(content) and (code := mended(content.get("error_code"))):
        return ProviderToolResult(call, error=code)
    shown = mended(_shown(content))
    if block.get("is_error"):
        return ProviderToolResult(call, error=shown or "the tool failed")
    return ProviderToolResult(call, shown)


def _shown(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(_shown, content)))
    if not is_object(content):
        return ""
    if text := string(content.get("text")):
        return text
    title, url = string(content.get("title")), string(content.get("url"))
    if title or url:
        return f"{title} <{url}>" if title and url else title or url
    if "stdout" in content or "stderr" in content:
        return "\n".join(filter(None, (string(content.get("stdout")), string(content.get("stderr")))))
    plain = {key: value for key, value in content.items() if key != "type" and not key.startswith("encrypted")}
    return json.dumps(plain, ensure_ascii=False) if plain else ""
