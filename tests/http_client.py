"""A small HTTP client for tests: real requests, no redirects followed, every header at hand."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]  # by lower-case name
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    site: str,
    path: str,
    method: str = "GET",
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    raw: bytes | None = None,
) -> Answer:
    """`body` goes as JSON, `raw` as it is. A Host among the headers replaces the real one."""
    split = urlsplit(site)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=20)
    payload = raw if raw is not None else None if body is None else json.dumps(body).encode()
    sent = dict(headers or {})
    if body is not None:
        sent.setdefault("content-type", "application/json")
    try:
        connection.putrequest(method, path, skip_host="host" in {name.lower() for name in sent})
        for name, value in sent.items():
            connection.putheader(name, value)
        if payload is not None or method != "GET":
            connection.putheader("content-length", str(len(payload or b"")))
        connection.endheaders(payload)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read().decode())
    finally:
        connection.close()
