"""How much one client may ask for: a token bucket each, and a bound on the body of a request."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import Message, Receive

MAX_CLIENTS = 10_000
BODY_WITHIN_S = 10.0


class TooLargeError(Exception):
    """The body is longer than allowed."""


class TooSlowError(Exception):
    """The body did not arrive in time."""


class Buckets:
    """A bucket per key that holds `burst` requests and fills with `rate_per_s`; the eldest are forgotten."""

    def __init__(self, rate_per_s: float, burst: float, monotonic_s: Callable[[], float]) -> None:
        assert rate_per_s > 0 and burst >= 1
        self._rate_per_s, self._burst, self._monotonic_s = rate_per_s, burst, monotonic_s
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> level, at seconds

    def take(self, key: str) -> float:
        """0.0 when the request may pass, else the seconds until the next one may. Never negative."""
        now_s = self._monotonic_s()
        level, at_s = self._levels.pop(key, (self._burst, now_s))
        level = min(self._burst, level + max(0.0, now_s - at_s) * self._rate_per_s)
        wait_s = 0.0 if level >= 1.0 else (1.0 - level) / self._rate_per_s
        self._levels[key] = (level - 1.0 if wait_s == 0.0 else level, now_s)
        if len(self._levels) > MAX_CLIENTS:
            self._levels.popitem(last=False)
        return wait_s


def client_key(address: str | None) -> str:
    """Who shares a bucket: an IPv4 address, or the /64 that an IPv6 host can choose addresses from."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return f"client {address}"
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return f"client {ipaddress.ip_network((parsed, 64), strict=False)}"
    return f"client {parsed}"


async def read_body(receive: Receive, declared: str | None, limit: int) -> bytes:
    """The whole body of a request. Raises TooLargeError beyond `limit` bytes, TooSlowError after 10 s."""
    if declared is not None and (not declared.isdecimal() or int(declared) > limit):
        raise TooLargeError
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await _collect(receive, limit)
    except TimeoutError:
        raise TooSlowError from None


async def _collect(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # the client has gone
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLargeError
        if not message.get("more_body", False):
            return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` as if the body that was read came again, in one piece."""
    handed = False

    async def again() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
