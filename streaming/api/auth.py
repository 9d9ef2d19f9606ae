"""API keys on calls: found in either header, checked for the scope that the call needs.

Protects the rule that a key opens only what its scopes name; a missing or unknown key is 401, a missing scope 403.
"""

from __future__ import annotations

from django.http import HttpRequest
from ninja.security import HttpBearer

from streaming.access import Access, Refused, access_by_key, key_in
from streaming.api.errors import ApiError


class Key(HttpBearer):
    """``Authorization: Bearer sg_…`` or ``X-API-Key: sg_…`` with one scope."""

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope
        self.is_async = True

    async def __call__(self, request: HttpRequest) -> Access:
        """The access of the request's key. Raises ``ApiError``."""
        headers = ((name.lower(), value) for name, value in request.headers.items())
        plaintext = key_in(headers)
        if not plaintext:
            raise ApiError(401, "An API key is needed: “Authorization: Bearer …” or “X-API-Key: …”.")
        return await self.authenticate(request, plaintext)

    async def authenticate(self, request: HttpRequest, token: str) -> Access:
        """The access of this key. Raises ``ApiError``."""
        try:
            return await access_by_key(token, self.scope)
        except Refused as error:
            raise ApiError(403 if error.code == "forbidden" else 401, str(error), code=error.code) from None
