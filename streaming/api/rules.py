"""``GET /v1/rules`` and ``/.well-known/jwks.json``: signed rules for clients, and the keys that they are signed with.

Exists so that a client can know which rules it was given. Protects the rule that nothing is handed out that does not
verify here and now: a client that gets no answer keeps what it has until that lapses.
"""

from __future__ import annotations

from hashlib import sha256

from channels.db import database_sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe
from ninja import Query, Router, Schema
from pydantic import Field

from guardrails.keys import key_set
from guardrails.selectors import ClientBundle, NoClientRules, PolicyUnavailable, client_bundle
from guardrails.signing import KeyRefused
from streaming.access import Access
from streaming.api.auth import Key
from streaming.api.errors import ApiError, error_response, refusals
from streaming.limits import Spends

router = Router(tags=["rules"])
KEYS_KEPT_S = 300
"""Seconds for which a cache may answer with the key set: so long a revocation may take to arrive."""


class RulesQuery(Schema):
    """Which policy; the key's own when it is left out."""

    policy: str = Field("", max_length=200)
    preset: str = Field("", max_length=200, description="Another name for `policy`.")


class RulesOut(Schema):
    """Signed rules. `bundle` alone is to be believed, once it was verified; the rest says what to expect in it."""

    policy: str
    version: int
    digest: str
    expires_at: int = Field(description="Seconds since 1970; the bundle is not believed afterwards.")
    bundle: str = Field(description="Compact JWS.")


@router.get(
    "/rules",
    response={200: RulesOut, 304: None, **refusals(404, 409, 429)},
    auth=Key("rules", Spends.START),
    summary="Signed rules for clients",
)
async def rules(request: HttpRequest, response: HttpResponse, query: Query[RulesQuery]) -> RulesOut | HttpResponse:
    """The client rules of a policy's active version, signed, with an `ETag`; 304 when the client has them already."""
    access = getattr(request, "auth", None)
    if not isinstance(access, Access):
        raise ApiError(401, "An API key is needed.")
    said_in = "preset" if query.preset and not query.policy else "policy"
    found = await _bundle(query.policy or query.preset or access.policy, said_in)
    tag = f'W/"{sha256(found.bundle.encode()).hexdigest()[:32]}"'
    response["ETag"] = tag
    response["Cache-Control"] = "private, no-cache"
    if _names(request.headers.get("If-None-Match", ""), tag):
        unchanged = HttpResponse(status=304)
        unchanged["ETag"] = tag
        unchanged["Cache-Control"] = "private, no-cache"
        return unchanged
    return RulesOut(
        policy=found.policy,
        version=found.version,
        digest=found.digest,
        expires_at=found.expires_at,
        bundle=found.bundle,
    )


@require_safe
def jwks(request: HttpRequest) -> HttpResponse:
    """The public keys; for everybody, from every page."""
    try:
        response: HttpResponse = JsonResponse(key_set(), content_type="application/jwk-set+json")
    except KeyRefused:
        return error_response(503, "The keys cannot be read.")
    response["Access-Control-Allow-Origin"] = "*"
    response["Cache-Control"] = f"public, max-age={KEYS_KEPT_S}"
    return response


async def _bundle(policy: str, said_in: str) -> ClientBundle:
    """The rules of this policy. ``said_in``: the field that names it."""
    try:
        found: ClientBundle = await database_sync_to_async(client_bundle)(policy)
    except PolicyUnavailable as error:
        status = 404 if error.reason in ("unknown", "inactive") else 503
        raise ApiError(status, str(error), code="policy_unavailable", field=said_in) from None
    except NoClientRules as error:
        raise ApiError(409, str(error), code="no_client_rules", field=said_in) from None
    except KeyRefused:
        raise ApiError(503, "The keys cannot be read.") from None
    return found


def _names(header: str, tag: str) -> bool:
    """Whether ``If-None-Match`` names the tag, compared weakly (RFC 9110, 13.1.2)."""
    named = {part.strip().removeprefix("W/") for part in header.split(",")}
    return "*" in named or tag.removeprefix("W/") in named
