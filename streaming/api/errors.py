"""One shape for everything that is refused: ``{"error": {"code", "message", "field"?}}``.

Exists so that a client needs one piece of code for all failures. Protects the rule that a refused call changes
nothing and says which field was wrong, and that no traceback or framework page leaves a call for programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NotRequired

import structlog
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI, Schema
from ninja.errors import HttpError, ValidationError
from typing_extensions import TypedDict  # pydantic reads it, and before Python 3.12 only this one

from streaming import away
from streaming.frames import place_of, words_of

logger = structlog.get_logger(__name__)
NOT_JSON = "The body is not JSON."

CODES = {
    400: "not_parseable",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    410: "state_lost",
    413: "too_large",
    415: "unknown_encoding",
    422: "invalid",
    429: "too_many_calls",
    503: "unavailable",
}


class Refusal(TypedDict):
    """Why a call was refused. ``field``: what is wrong; ``expected_seq``: what a stream takes next."""

    code: str
    message: str
    field: NotRequired[str]
    expected_seq: NotRequired[int]


class ErrorOut(Schema):
    """The one shape of every refusal."""

    error: Refusal


ANY_CALL = frozenset({400, 401, 403, 413, 415, 422, 503})
"""How every call with a key may be refused."""


def refusals(*more: int) -> dict[int, type[ErrorOut]]:
    """For the document: the refusals of a call, those of every call included."""
    return dict.fromkeys(sorted(ANY_CALL | {*more}), ErrorOut)


class ApiError(Exception):
    """A refusal with its HTTP status. ``code`` empty: the status's own."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        field: str = "",
        headers: Mapping[str, str] | None = None,
        expected_seq: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or CODES.get(status, "error")
        self.field = field
        self.headers = headers or {}
        self.expected_seq = expected_seq


def error_response(
    status: int, message: str, *, code: str = "", field: str = "", expected_seq: int | None = None
) -> JsonResponse:
    """The one shape; ``expected_seq`` where a stream's calls are out of order."""
    error: dict[str, str | int] = {"code": code or CODES.get(status, "error"), "message": message}
    if field:
        error["field"] = field
    if expected_seq is not None:
        error["expected_seq"] = expected_seq
    response = JsonResponse({"error": error}, status=status)
    response.refusal = error  # type: ignore[attr-defined]  # for the edge, which words it for other dialects
    if status == HTTPStatus.UNAUTHORIZED:
        response["WWW-Authenticate"] = "Bearer"
    return response


def database_away(error: BaseException, path: str) -> JsonResponse:
    """The refusal while the database cannot be reached, which is logged in one line."""
    away.noted(error, path=path)
    response = error_response(503, away.SAID, code=away.CODE)
    response["Retry-After"] = str(away.AGAIN_S)
    return response


def install(api: NinjaAPI) -> None:
    """Give the API its handlers."""

    @api.exception_handler(ApiError)
    def refused(request: HttpRequest, error: ApiError) -> HttpResponse:
        response = error_response(
            error.status, str(error), code=error.code, field=error.field, expected_seq=error.expected_seq
        )
        for name, value in error.headers.items():
            response[name] = value
        return response

    @api.exception_handler(ValidationError)
    def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
        first = error.errors[0] if error.errors else {}
        # ("body", "payload", "text"): where it stands and what our argument is called is not the client's business.
        place = first.get("loc", ())
        field = place_of(place[1 if place[:1] == ("query",) else 2 :])
        if field:
            return error_response(422, f"“{field}”: {words_of(first).removeprefix('Value error, ')}.", field=field)
        if first.get("type") == "missing":
            return error_response(400, NOT_JSON)
        return error_response(422, "The body is not a JSON object.")

    @api.exception_handler(HttpError)
    def http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
        message = NOT_JSON if error.status_code == 400 else str(error)
        return error_response(error.status_code, message)

    @api.exception_handler(RequestDataTooBig)
    def too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
        return error_response(413, "The body is larger than 1 MB.")

    @api.exception_handler(Http404)
    def not_found(request: HttpRequest, error: Http404) -> HttpResponse:
        return error_response(404, "There is nothing here.")

    @api.exception_handler(OperationalError)
    @api.exception_handler(InterfaceError)
    def no_database(request: HttpRequest, error: Exception) -> HttpResponse:
        return database_away(error, request.path)

    @api.exception_handler(Exception)
    def failed(request: HttpRequest, error: Exception) -> HttpResponse:
        logger.exception("call_failed", path=request.path)
        return error_response(500, "Something went wrong on the server.", code="internal")
