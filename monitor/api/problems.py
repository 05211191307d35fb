"""Errors as RFC 9457 describes them."""

from __future__ import annotations

import http

from starlette.responses import JSONResponse


def problem(status: int, detail: str, **more: object) -> JSONResponse:
    """A problem document with its status."""
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    return JSONResponse(body, status, media_type="application/problem+json")
