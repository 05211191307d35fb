"""HTTP channels: one POST, signed where there is a secret, to a guarded address, within one deadline."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Any

import httpx2

from monitor.channels.base import Outcome, Shape
from monitor.channels.secrets import signing_keys, url_of
from monitor.channels.ssrf import Resolver, Target, TargetRefused, addresses, parse, system_resolver
from monitor.channels.standard_webhooks import HEADER_ID, HEADER_TIMESTAMP, sign
from monitor.clock import Clock
from monitor.config import ChannelSettings
from monitor.errors import ConfigError
from storage.types import ClaimedDelivery

USER_AGENT = "inferwatch"


class HttpChannel:
    """One kind of HTTP receiver, see `Shape`. The receiver's status decides; its body is never read.

    No redirect is followed, no proxy of the environment used, every attempt opens its own connection to
    an address that the guard has checked for this attempt. Raises ConfigError for a wrong URL.
    """

    def __init__(
        self,
        name: str,
        settings: ChannelSettings,
        shape: Shape,
        *,
        timeout_s: float,
        clock: Clock,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        try:
            self._target: Target = parse(shape.url)
        except TargetRefused as error:
            raise ConfigError(f"channels.{name}.url", "***", str(error)) from None
        self._shape = shape
        self._allow_private = settings.allow_private
        self._timeout_s = timeout_s
        self._clock = clock
        self._resolver = resolver
        self._ssl = ssl_context
        self._attempts: set[_Attempt] = set()
        self._lock = threading.Lock()
        self._closed = False

    def send(self, delivery: ClaimedDelivery) -> Outcome:
        try:
            found = addresses(self._target, allow_private=self._allow_private, resolver=self._resolver)
        except TargetRefused as error:
            return Outcome(error="target_refused", detail=str(error))
        except (OSError, UnicodeError) as error:
            return Outcome(error="name_not_resolved", detail=f"{self._target.host}: {error}"[:200])
        body, attempt = self._shape.body(delivery), _Attempt()
        with self._lock:
            if self._closed:
                return Outcome(error="stopped")
            self._attempts.add(attempt)
        deadline = threading.Timer(self._timeout_s, attempt.abort, ("timeout",))
        deadline.daemon = True
        deadline.start()
        try:
            return self._post(delivery.delivery_id, body, found, attempt)
        finally:
            deadline.cancel()
            with self._lock:
                self._attempts.discard(attempt)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            on_their_way = list(self._attempts)
        for attempt in on_their_way:
            attempt.abort("stopped")

    def _post(self, delivery_id: str, body: bytes, found: list[str], attempt: _Attempt) -> Outcome:
        """Try the addresses in turn until one accepts a connection."""
        outcome = Outcome(error="connect_failed")
        for address in found:
            outcome = self._post_to(address, delivery_id, body, attempt)
            if outcome.error != "connect_failed" or attempt.aborted:
                break
        return Outcome(error=attempt.aborted) if outcome.error and attempt.aborted else outcome

    def _post_to(self, address: str, delivery_id: str, body: bytes, attempt: _Attempt) -> Outcome:
        extensions: dict[str, Any] = {"trace": attempt.trace}
        if not self._target.is_literal:
            extensions["sni_hostname"] = self._target.host  # what the certificate must name
        try:
            with httpx2.Client(
                verify=self._ssl or _default_ssl(),
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout_s,
            ) as client:
                request = client.build_request(
                    "POST",
                    self._target.url_at(address),
                    content=body,
                    headers=self._headers(delivery_id, body),
                    extensions=extensions,
                )
                response = client.send(request, stream=True)
                outcome = Outcome(response.status_code, retry_after=response.headers.get("retry-after"))
                attempt.abort("finished")  # whatever else it wants to say
                response.close()
                return outcome
        except httpx2.TimeoutException as error:
            kind = "connect_failed" if isinstance(error, httpx2.ConnectTimeout) else "timeout"
            return Outcome(error=kind, detail=type(error).__name__)
        except httpx2.ConnectError as error:
            kind = "tls_failed" if isinstance(_root(error), ssl.SSLError) else "connect_failed"
            return Outcome(error=kind, detail=str(error)[:200])
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return Outcome(error="broken_response", detail=type(error).__name__)

    def _headers(self, delivery_id: str, body: bytes) -> dict[str, str]:
        timestamp_s, shape = self._clock.now_ms() // 1000, self._shape
        headers = {HEADER_ID: delivery_id, HEADER_TIMESTAMP: str(timestamp_s)}
        if shape.keys:
            headers = sign(shape.keys, delivery_id, timestamp_s, body)
        return {
            **headers,
            **shape.headers,
            "host": self._target.host_header,
            "content-type": shape.content_type,
            "user-agent": USER_AGENT,
            "accept": "*/*",
            "accept-encoding": "identity",
            "connection": "close",
        }


class WebhookChannel(HttpChannel):
    """Standard Webhooks: the stored payload as it is. Raises ConfigError for a wrong URL or secret."""

    def __init__(
        self,
        name: str,
        settings: ChannelSettings,
        *,
        timeout_s: float,
        clock: Clock,
        environment: Mapping[str, str] | None = None,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        variables = os.environ if environment is None else environment
        shape = Shape(
            url=url_of(name, settings, variables),
            body=lambda delivery: delivery.payload.encode(),
            keys=signing_keys(name, settings, variables),
        )
        super().__init__(
            name,
            settings,
            shape,
            timeout_s=timeout_s,
            clock=clock,
            resolver=resolver,
            ssl_context=ssl_context,
        )


class _Attempt:
    """One attempt's socket, so that a deadline can cut it off wherever it hangs."""

    def __init__(self) -> None:
        self.aborted = ""
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Called by the HTTP client at every step; keeps the socket, stops what begins after an abort."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))
        if self.aborted in ("timeout", "stopped") and event.endswith(".started") and "close" not in event:
            raise httpx2.ReadTimeout(self.aborted)

    def abort(self, why: str) -> None:
        with self._lock:
            if not self.aborted:
                self.aborted = why
            for sock in self._sockets:
                try:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    continue  # the other side was quicker


def _root(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


@functools.cache
def _default_ssl() -> ssl.SSLContext:
    return ssl.create_default_context()
