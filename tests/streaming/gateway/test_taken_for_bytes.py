"""What passes unseen as bytes: only what is said to be media and is bytes, never a text that has no blanks."""

from __future__ import annotations

import base64
import json

import pytest

from guardrails.policy import compile_policy
from streaming.gateway.gates import widened
from streaming.gateway.prompt import Prompted, guarded
from streaming.gateway.walker import Json

POLICY = widened(
    compile_policy(
        {"policy": "p", "guardrails": [
            {"name": "pii", "kind": "pii", "action": "redact"},
            {"name": "words", "kind": "keywords", "action": "redact", "config": {"keywords": ["蒼鷺計画"]}},
        ]}
    )
)  # fmt: skip
MAIL, HERON = "desk.seven@example.com", "蒼鷺計画"
CSV = "id,mail\n" + f"1,{MAIL}\n" * 20
CJK = f"これは秘密の文書です。「{HERON}」に関する資料。" + "内容は以下の通りです。" * 30
BYTES = base64.b64encode(bytes(range(256)) * 3).decode()
TEXTS = {"csv": CSV, "minified": f'x={{a:"{MAIL}"}};' * 20, "japanese": CJK, "data": f"data:text/plain,{MAIL},{HERON}"}


def user(*parts: Json) -> Json:
    return {"role": "user", "content": list(parts)}


async def passed(*messages: Json, media_allowed: bool = True, **more: object) -> Prompted:
    return await guarded(POLICY, {"model": "m", "messages": list(messages), **more}, media_allowed=media_allowed)


def unseen(found: Prompted) -> str:
    said = json.dumps(found.body, ensure_ascii=False)
    assert MAIL not in said
    assert HERON not in said
    return said


async def test_it_works() -> None:
    """A picture that is one passes byte by byte, and the record says so."""
    picture: Json = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BYTES}"}}
    found = await passed(user(picture))
    assert found.body["messages"] == [user(picture)]
    assert found.media == ("image",)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("block", ["document", "image", "file", "brand_new"])
async def test_a_text_source_is_text_in_whatever_block_it_stands(block: str, text: str) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": text, "url": text}
    unseen(await passed(user({"type": block, "source": source, "file": source})))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("field", ["source", "file", "image_url", "input_audio", "video_url"])
async def test_fields_of_such_names_elsewhere_are_text(field: str, text: str) -> None:
    inner = {field: {"data": text, "url": text, "file_data": text, "file_id": text, "image": text}}
    block = {"type": "tool_use", "id": "t", "name": "send", "input": inner}
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": json.dumps(inner)}}
    messages: list[Json] = [
        user({"type": "text", "text": json.dumps(inner)}),
        {"role": "assistant", "content": [block], "tool_calls": [call], **inner},
        {"role": "tool", "tool_call_id": "c", "content": json.dumps(inner)},
    ]
    found = await passed(
        *messages, media_allowed=False, metadata=inner, tools=[{"name": "send", "input_schema": inner}]
    )
    unseen(found)
    assert found.media == ()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_what_is_said_to_be_bytes_and_is_not_is_looked_at(text: str) -> None:
    parts: list[Json] = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
        {"type": "image_url", "image_url": {"url": text}},
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        {"type": "file", "file": {"file_data": text, "filename": text}},
        {"type": "input_image", "image_url": text},
        {"type": "document", "source": {"type": "base64", "data": text}, "title": text},
    ]
    found = await passed(user(*parts), {"role": "user", "content": "?", "images": [text, {"url": text}, BYTES]})
    unseen(found)
    assert found.body["messages"][1]["images"][2] == BYTES  # type: ignore[index,call-overload]


SHORT = {
    "a card": "4111111111111111", "a token": "ghp_" + "a1B2" * 9, "a key": "AKIA" + "ABCD2345" * 2,
    "a long key": "sk-ant-api03-" + "a1B2c3D4e5F" * 9,
}  # fmt: skip


@pytest.mark.parametrize("text", SHORT.values(), ids=SHORT)
async def test_what_is_too_short_for_a_picture_is_looked_at(text: str) -> None:
    """Numbers and keys decode as base64."""
    secrets = {"name": "s", "kind": "secrets", "action": "redact"}
    policy = widened(compile_policy({"policy": "p", "guardrails": [{"name": "p", "kind": "pii"}, secrets]}))
    parts: list[Json] = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
        {"type": "image_url", "image_url": {"url": text}},
        {"type": "image_url", "image_url": text},
        {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}},
        {"type": "file", "file": {"file_data": text}},
    ]
    small = f"data:image/gif;base64,{BYTES[:60]}"
    kept: Json = {"type": "image_url", "image_url": {"url": small}}
    messages = [user(*parts, kept), {"role": "user", "content": "?", "images": [text, small, BYTES[:256]]}]
    found = await guarded(policy, {"model": "m", "messages": messages}, media_allowed=True)
    assert text not in json.dumps(found.body)
    first, second = found.body["messages"]  # type: ignore[misc]
    assert first["content"][-1] == kept  # type: ignore[index]
    assert second["images"][1:] == [small, BYTES[:256]]  # type: ignore[index]
    assert found.media == ("image", "audio", "file")


async def test_bytes_of_every_part_pass_as_they_are() -> None:
    lines = "\n".join(BYTES[at : at + 76] for at in range(0, len(BYTES), 76))
    parts: list[Json] = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BYTES}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": lines}},
        {"type": "input_audio", "input_audio": {"data": BYTES.rstrip("="), "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{BYTES}", "filename": "a.pdf"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{BYTES}"},
        {"type": "tool_result", "tool_use_id": "t", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BYTES}}]},
    ]  # fmt: skip
    found = await passed(user(*parts))
    assert found.body["messages"] == [user(*parts)]
    assert set(found.media) == {"image", "document", "audio", "file"}


async def test_a_document_of_blocks_is_text_and_a_picture_in_it_is_a_picture() -> None:
    text: Json = {"type": "text", "text": CSV}
    document: Json = {"type": "document", "source": {"type": "content", "content": [text]}}
    found = await passed(user(document), media_allowed=False)
    unseen(found)
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BYTES}}
    document["source"] = {"type": "content", "content": [text, picture]}
    assert "image" in str((await passed(user(document), media_allowed=False)).refused)


ADDRESS = f"data:image/png;base64,{BYTES}"
ODD: dict[str, object] = {
    "no type": {"image_url": {"url": ADDRESS}},
    "no type, an address elsewhere": {"image_url": {"url": "https://example.com/a.png"}},
    "no type, sound": {"input_audio": {"data": BYTES, "format": "wav"}},
    "an unknown type": {"type": "brand_new", "image_url": {"url": ADDRESS}},
    "a document's address": {"type": "document_url", "document_url": "https://example.com/a.pdf"},
    "embeddings": {"type": "image_embeds", "image_embeds": BYTES},
    "embeddings of sound": {"type": "audio_embeds", "audio_embeds": {"audio_embeds": BYTES}},
    "a text with a picture beside it": {"type": "text", "text": "Hi", "image_url": {"url": ADDRESS}},
    "bytes under any name": {"type": "brand_new", "payload": [{"of": ADDRESS}]},
    "base64 under any name": {"type": "brand_new", "payload": {"of": BYTES}},
    "base64 in lines": {"payload": "\n".join(BYTES[at : at + 76] for at in range(0, len(BYTES), 76))},
    "no list": None,
}


@pytest.mark.parametrize("part", ODD.values(), ids=ODD)
async def test_media_of_a_type_that_nobody_knows_is_media(part: Json | None) -> None:
    """Refused where a policy decides; where it may pass, noted, and the text in it looked at all the same."""
    picture: Json = {"image_url": {"url": ADDRESS}}
    told: Json = {"role": "user", "content": picture} if part is None else user(part | {"note": CSV})
    result: Json = {"type": "tool_result", "tool_use_id": "t", "content": [picture if part is None else part]}
    for message in (told, user(result)):
        assert "beside text" in str((await passed(message, media_allowed=False)).refused)
        found = await passed(message)
        assert found.media
        unseen(found)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Hm.", "signature": BYTES},
        {"type": "redacted_thinking", "data": BYTES},
        {"type": "web_search_tool_result", "content": [{"type": "web_search_result", "encrypted_content": BYTES}]},
        {"type": "tool_use", "id": "t", "name": "send", "input": {"image": BYTES, "image_url": ADDRESS}},
        {"type": "text", "text": BYTES},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}},
        {"type": "brand_new", "note": "a text without a sign that is no more than words " * 20},
    ],
    ids=lambda part: str(part["type"]),
)
async def test_sealed_words_arguments_and_text_are_no_media(part: Json) -> None:
    found = await passed(user(part), media_allowed=False)
    assert found.media == ()
