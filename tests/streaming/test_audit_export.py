"""The audit log over HTTP: the very lines of the command, whole however often it is cut off, and no text in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from django.core.management import call_command
from django.test import AsyncClient

from guardrails.services import create_api_key
from streaming.api import audit
from streaming.log_redis import close_shared_log

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
TEXT = "The heron's number is 536-22-8145."


@pytest.fixture(autouse=True)
async def closing() -> AsyncIterator[None]:
    yield
    await close_shared_log()


class Auditor:
    """Has a key with the one scope."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    async def get(self, query: str = "") -> AsyncIterator[bytes]:
        response = await AsyncClient().get(f"/v1/audit/export{query}", headers=self.headers)
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        return aiter(response)

    async def lines(self, query: str = "") -> list[str]:
        return b"".join([part async for part in await self.get(query)]).decode().splitlines()

    async def refusal(self, query: str) -> tuple[int, str]:
        response = await AsyncClient().get(f"/v1/audit/export{query}", headers=self.headers)
        return response.status_code, json.loads(response.content)["error"].get("field", "")


@pytest.fixture
async def auditor() -> Auditor:
    made = Auditor()
    make = database_sync_to_async(create_api_key)
    made.headers = {"Authorization": f"Bearer {(await make(name='auditor', scopes=['audit']))[1]}"}
    return made


async def checked(times: int, name: str = "one") -> None:
    """Texts of another key's."""
    _, key = await database_sync_to_async(create_api_key)(name=name, scopes=["check"])
    headers = {"Authorization": f"Bearer {key}"}
    body = json.dumps({"text": TEXT, "kind": "response"})
    for _ in range(times):
        response = await AsyncClient().post("/v1/check", body, content_type="application/json", headers=headers)
        assert response.status_code == 200


@sync_to_async
def exported() -> list[str]:
    out = StringIO()
    call_command("audit", "export", stdout=out)
    return out.getvalue().splitlines()


async def test_it_works(auditor: Auditor, tmp_path: Path) -> None:
    await checked(3)
    lines = await auditor.lines()
    assert lines == await exported()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) == 6, "opened and sealed"
    assert "heron" not in "".join(lines)
    kept = tmp_path / "log.ndjson"
    kept.write_text("\n".join(lines) + "\n", "utf-8")
    await sync_to_async(call_command)("audit", "verify", str(kept), stdout=StringIO())


async def test_an_export_that_was_cut_off_goes_on(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "AT_ONCE", 2)
    await checked(3)
    parts = await auditor.get()
    first = (await anext(parts)).decode().splitlines()
    assert len(first) == 2, "not all of it at once"
    last = json.loads(first[-1])["seq"]
    assert [*first, *await auditor.lines(f"?after={last}")] == await exported()
    assert await auditor.lines("?after=6") == await auditor.lines("?after=999999999999999") == []


async def test_what_is_written_meanwhile_comes_the_next_time(
    auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Or a log that grows as fast as it is read would have no end."""
    monkeypatch.setattr(audit, "AT_ONCE", 1)
    await checked(1)
    parts = await auditor.get()
    lines = [await anext(parts)]
    await checked(1, "two")
    lines += [part async for part in parts]
    assert len(lines) == 2
    assert len(await auditor.lines("?after=2")) == 2


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "", "1%0A", "9999999999999999"])
async def test_a_place_that_is_none_is_refused(auditor: Auditor, after: str) -> None:
    status, field = await auditor.refusal(f"?after={after}")
    assert (status, "after" in field) == (422, True)
