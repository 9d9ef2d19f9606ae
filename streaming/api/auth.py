"""API keys on calls: found in either header, checked for the scope that the call needs.

Protects the rule that a key opens only what its scopes name; a missing or unknown key is 401, a missing scope or a page
of an origin that the key does not name 403, a call too many 429.
"""

from __future__ import annotations

from django.http import HttpRequest
from ninja.security import HttpBearer

from streaming.access import Access, Refused, access_by_key, key_in
from streaming.api.edge import ALLOWANCE, ORIGIN
from streaming.api.errors import ApiError
from streaming.gateway.places import Place
from streaming.gateway.standing import Standing, begin, standing
from streaming.limits import Allowance, Spends, take

STANDING, PLACE = "sluicegate.standing", "sluicegate.place"
"""Where ``Answers`` leaves what it found and took, in ``request.META``."""
_PLACES = (("authorization", "HTTP_AUTHORIZATION"), ("x-api-key", "HTTP_X_API_KEY"))
"""The headers in which a key may stand, and where Django keeps them."""


class Key(HttpBearer):
    """``Authorization: Bearer sg_…`` or ``X-API-Key: sg_…`` with one scope, and what a call uses up of its limit."""

    def __init__(self, scope: str, spends: Spends | None = None) -> None:
        super().__init__()
        self.scope = scope
        self.spends = spends
        self.is_async = True

    async def __call__(self, request: HttpRequest) -> Access:
        """The access of the request's key. Raises ``ApiError``."""
        plaintext = key_of(request)
        if not plaintext:
            raise ApiError(401, "An API key is needed: “Authorization: Bearer …” or “X-API-Key: …”.")
        return await self.authenticate(request, plaintext)

    async def authenticate(self, request: HttpRequest, token: str) -> Access:
        """The access of this key. Raises ``ApiError``."""
        try:
            access = await self.access(request, token)
            check_origin(request, access)
        except Refused as error:
            raise ApiError(401 if error.code == "unauthenticated" else 403, str(error), code=error.code) from None
        await self.spend(request, access)
        return access

    async def access(self, request: HttpRequest, token: str) -> Access:
        """What the key allows. Raises ``Refused``."""
        return await access_by_key(token, self.scope)

    async def spend(self, request: HttpRequest, access: Access) -> None:
        """Count the call. Raises ``ApiError`` when it is one too many."""
        if self.spends is None:
            return
        limit = access.calls_per_minute if self.spends is Spends.START else access.updates_per_second
        _left(request, await take(access.visitor.client, self.spends, limit), self.spends)


class Answers(Key):
    """A key on a call that begins an answer of the gateway: with it all is read and counted that the call needs, and
    ``taken`` of the request says what came of it."""

    def __init__(self) -> None:
        super().__init__("gateway", Spends.START)

    async def access(self, request: HttpRequest, token: str) -> Access:
        """What the key allows. Raises ``Refused``."""
        found = request.META[STANDING] = await standing(token, self.scope)
        return found.access

    async def spend(self, request: HttpRequest, access: Access) -> None:
        """Count the call and take a place. Raises ``ApiError`` when it is one too many."""
        found: Standing = request.META[STANDING]
        allowance, place = await begin(found)
        _left(request, allowance, Spends.START)
        request.META[PLACE] = place


def taken(request: HttpRequest) -> tuple[Standing, Place | None]:
    """What ``Answers`` has read, and the place that it took; None where all are taken."""
    return request.META[STANDING], request.META[PLACE]


def key_of(request: HttpRequest) -> str:
    """The key in the headers of a call, empty if there is none."""
    return key_in((name, request.META.get(place, "")) for name, place in _PLACES)


def _left(request: HttpRequest, allowance: Allowance | None, spends: Spends) -> None:
    """Note what is left. Raises ``ApiError`` where the call is one too many."""
    if allowance is None:
        return
    request.META[ALLOWANCE] = allowance
    if allowance.exceeded:
        per = "minute" if spends is Spends.START else "second"
        said = f"The API key allows {allowance.limit} such calls per {per}."
        raise ApiError(429, said, headers={"Retry-After": str(allowance.retry_after)})


def check_origin(request: HttpRequest, access: Access) -> None:
    """Note the origin of a page that may read the answer. Raises ``Refused`` for one that may not."""
    origin = request.headers.get("Origin", "")
    if access.check_origin(origin, f"{request.scheme}://{request.get_host()}"):
        request.META[ORIGIN] = origin
