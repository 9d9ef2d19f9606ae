"""``GET /v1/rules`` and the key set: what a client gets verifies with what it pinned; or it gets a reason only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import connection
from django.test import AsyncClient

from guardrails import keys, loading, services
from guardrails.bundle import Verified, verify_bundle
from guardrails.models import Policy
from streaming.log_redis import close_shared_log

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("demo_policy", "valkey_url")]
AS_PAGE = "https://shop.example"


@pytest.fixture(autouse=True)
async def closing() -> AsyncIterator[None]:
    yield
    await close_shared_log()


@database_sync_to_async
def new_key(*scopes: str, policy: str = "", origins: tuple[str, ...] = ()) -> str:
    return services.create_api_key(name=f"key {scopes} {policy}", scopes=scopes, policy=policy, origins=origins)[1]


async def get(key: str, query: str = "", **headers: str) -> Any:
    given = {"Authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await AsyncClient().get(f"/v1/rules{query}", headers=given)


async def jwks() -> Any:
    return await AsyncClient().get("/.well-known/jwks.json")


async def verified(body: dict[str, Any], policy: str, seen: Any = None) -> Verified:
    set_ = json.loads((await jwks()).content)
    root = keys.root().x
    return verify_bundle(
        body["bundle"], set_, root=root, now=loading.wall_clock(), issuer="sluicegate", policy=policy, seen=seen
    )


async def test_it_works() -> None:
    key = await new_key("rules")
    response = await get(key, "?policy=demo")
    body = json.loads(response.content)
    assert (response.status_code, set(body)) == (200, {"policy", "version", "digest", "expires_at", "bundle"})
    found = await verified(body, "demo")
    assert (body["policy"], body["version"], body["digest"]) == ("demo", 1, found.statement.digest)
    assert body["expires_at"] == found.statement.exp
    guardrails = found.client_rules["guardrails"]
    assert isinstance(guardrails, list)
    assert {guardrail["kind"] for guardrail in guardrails} <= {"regex", "keywords", "pii", "secrets"}
    assert guardrails


async def test_policy_is_the_one_named_else_the_keys_else_basic() -> None:
    own, none = await new_key("rules", policy="medical"), await new_key("rules")
    assert json.loads((await get(own)).content)["policy"] == "medical"
    assert json.loads((await get(own, "?preset=financial")).content)["policy"] == "financial"
    assert json.loads((await get(own, "?policy=demo&preset=financial")).content)["policy"] == "demo"
    assert json.loads((await get(none)).content)["policy"] == "basic"


async def test_client_that_has_it_is_told_so_without_a_body() -> None:
    key = await new_key("rules")
    first = await get(key, "?policy=demo")
    tag = first["ETag"]
    for said in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        again = await get(key, "?policy=demo", If_None_Match=said)
        assert (again.status_code, again.content, again["ETag"]) == (304, b"", tag)
    assert (await get(key, "?policy=demo", If_None_Match='"x"')).status_code == 200
    assert (await get(key, "?policy=medical", If_None_Match=tag)).status_code == 200


async def test_roll_back_reaches_a_client_with_its_next_call() -> None:
    key = await new_key("rules", policy="demo")
    seen: dict[tuple[str, str, str], int] = {}
    one = await get(key)
    first = await verified(json.loads(one.content), "demo", seen)

    def activate_second() -> None:
        draft = {**Policy.objects.get(name="demo").versions.get(number=1).document, "description": "second"}
        services.install(document=draft)

    await database_sync_to_async(activate_second)()
    two = await get(key, If_None_Match=one["ETag"])
    second = await verified(json.loads(two.content), "demo", seen)
    seen[second.place] = second.statement.serial
    await database_sync_to_async(lambda: services.rollback(policy=Policy.objects.get(name="demo")))()
    three = await get(key, If_None_Match=two["ETag"])
    third = await verified(json.loads(three.content), "demo", seen)
    versions = [found.statement.version for found in (first, second, third)]
    serials = [found.statement.serial for found in (first, second, third)]
    assert (versions, serials) == ([1, 2, 1], [1, 2, 3])


async def test_refused_by_key_scope_policy_and_origin() -> None:
    key, other = await new_key("rules"), await new_key("check")
    assert (await AsyncClient().get("/v1/rules")).status_code == 401
    assert (await get("sg_no")).status_code == 401
    assert (await get(other)).status_code == 403
    assert (await get(key, Origin=AS_PAGE)).status_code == 403
    for query, field in (("?policy=none", "policy"), ("?preset=none", "preset"), ("?policy=&preset=none", "preset")):
        unknown = await get(key, query)
        error = json.loads(unknown.content)["error"]
        assert (unknown.status_code, error["code"], error["field"]) == (404, "policy_unavailable", field)
    assert (await get(key, f"?policy={'x' * 201}")).status_code == 422


async def test_page_that_the_key_names_may_read_answer_and_tag() -> None:
    key = await new_key("rules", origins=(AS_PAGE,))
    response = await get(key, Origin=AS_PAGE)
    assert response["Access-Control-Allow-Origin"] == AS_PAGE
    assert "ETag" in response["Access-Control-Expose-Headers"]
    before = await AsyncClient().options(
        "/v1/rules", headers={"Origin": AS_PAGE, "Access-Control-Request-Method": "GET"}
    )
    assert "If-None-Match" in before["Access-Control-Allow-Headers"]


async def test_what_does_not_verify_is_not_handed_out() -> None:
    key = await new_key("rules", policy="demo")

    def alter() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE guardrails_activation SET serial = serial + 100")

    await database_sync_to_async(alter)()
    response = await get(key)
    assert response.status_code == 503
    assert json.loads(response.content)["error"]["code"] == "policy_unavailable"


async def test_version_without_client_rules_says_so() -> None:
    key = await new_key("rules", policy="demo")

    def without() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM guardrails_publication")
        services.activate(version=Policy.objects.get(name="demo").versions.get(number=1))

    await database_sync_to_async(without)()
    response = await get(key)
    assert (response.status_code, json.loads(response.content)["error"]["code"]) == (409, "no_client_rules")


async def test_keys_are_public_and_hold_nothing_private() -> None:
    response = await jwks()
    assert (response.status_code, response["Access-Control-Allow-Origin"]) == (200, "*")
    assert response["Content-Type"] == "application/jwk-set+json"
    members = json.loads(response.content)["keys"]
    assert len(members) == 3
    assert all("d" not in member and member["alg"] == "Ed25519" for member in members)
    assert (await AsyncClient().post("/.well-known/jwks.json")).status_code == 405


async def test_keys_that_cannot_be_read_are_no_traceback(settings: Any, tmp_path: Any) -> None:
    (tmp_path / "ring.json").write_text("{}")
    settings.SLUICEGATE_KEYRING_FILE = str(tmp_path / "ring.json")
    assert (await jwks()).status_code == 503
    assert (await get(await new_key("rules"))).status_code == 503
