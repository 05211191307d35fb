"""What the description says of the answers of a route: which they are, with which headers, which refusals."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from monitor.api.replies import IncidentDetail, Model

Responses = dict[int | str, dict[str, Any]]

_WORDS = {
    400: "the body is no JSON",
    401: "a token is needed, or it is not known",
    403: "the token may only read, or the request comes from another origin",
    404: "no such thing",
    409: "not in this state",
    413: "the body is too long",
    422: "a value that cannot be",
    429: "too many requests; see retry-after",
    503: "the database does not answer; try again",
}
_SCHEMA = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def refusals(*statuses: int) -> Responses:
    """Problem documents with these statuses."""
    return {status: {"description": _WORDS[status], "content": _SCHEMA} for status in statuses}


DEFAULT: Responses = {"default": {"description": "an RFC 9457 problem document", "content": _SCHEMA}}
ALWAYS = refusals(401, 422, 429, 503)
_TAG = {"ETag": {"schema": {"type": "string"}, "description": "weak; send it as If-None-Match"}}
_NEXT = {"Link": {"schema": {"type": "string"}, "description": '`<...>; rel="next"` where there is more'}}
_SAME: Responses = {304: {"description": "as it was, by If-None-Match"}}


def found(reply: type[BaseModel], status: int = 200) -> Responses:
    """One thing that a change answers."""
    return {
        status: {"model": reply, "description": "as it is now"},
        **refusals(400, 401, 403, 404, 413, 422, 429, 503),
    }


def one(reply: type[BaseModel]) -> Responses:
    return {
        200: {"model": reply, "description": "found", "headers": _TAG},
        **_SAME,
        **ALWAYS,
        **refusals(404),
    }


def many(reply: type[BaseModel]) -> Responses:
    return {
        200: {"model": list[reply], "description": "rows", "headers": {**_TAG, **_NEXT}},  # type: ignore[valid-type]
        **_SAME,
        **ALWAYS,
    }


INCIDENT = found(IncidentDetail)
MODEL = found(Model)
