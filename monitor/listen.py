"""`inferwatch webhook listen`: a small receiver that verifies what it gets and shows it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from rich.console import Console
from rich.markup import escape

from monitor.channels.standard_webhooks import BadSignature, parse_secrets, verify
from monitor.clock import Clock, SystemClock
from monitor.output import clean

MAX_BODY_BYTES = 4 << 20
READ_TIMEOUT_S = 10.0
REPLAY_MEMORY_S = 600


@dataclass(frozen=True, slots=True)
class Received:
    """One request. `payload` is empty when it was refused before it was read as JSON."""

    delivery_id: str
    verified: bool
    reason: str  # "verified", "unsigned" (no secret to check with), "repeated" or why it was refused
    payload: dict[str, Any]
    headers: dict[str, str]
    body: bytes


class Receiver:
    """An HTTP server in threads of its own that verifies Standard Webhooks.

    Answers 204 to a message it accepts (again to one it has seen: delivery is at least once, and
    `on_event` is then not called again), 401 to a bad signature, 400 to anything that is no JSON object.
    Without a secret nothing is verified. Port 0 takes a free one. Raises ValueError for a malformed
    secret, OSError for a port in use.
    """

    def __init__(
        self,
        *,
        secret: str | None,
        on_event: Callable[[Received], None],
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self._keys = parse_secrets(secret) if secret else []
        self._on_event = on_event
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}  # verified id -> second of its newest arrival
        self._last_s = time.monotonic()
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        text = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"http://{f'[{text}]' if ':' in text else text}:{port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_until_quiet(self, quiet_s: float = 0.5, timeout_s: float = 30.0) -> bool:
        """Wait until nothing has arrived for `quiet_s`; False when the time was not enough."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            with self._lock:
                rest_s = self._last_s + quiet_s - time.monotonic()
            if rest_s <= 0:
                return True
            time.sleep(min(rest_s, max(deadline_s - time.monotonic(), 0.0)))
        return False

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Judge one message and pass it on; returns the HTTP status to answer."""
        with self._lock:
            self._last_s = time.monotonic()
            received = self._judge(headers, body)
            if received.reason != "repeated":
                self._on_event(received)
        if received.reason in ("verified", "unsigned", "repeated"):
            return 204
        return 400 if received.reason == "not_json" else 401

    def _judge(self, headers: dict[str, str], body: bytes) -> Received:
        delivery_id, now_s = headers.get("webhook-id", ""), self._clock.now_ms() // 1000
        if self._keys:
            try:
                delivery_id = verify(self._keys, headers, body, now_s=now_s)
            except BadSignature as error:
                return Received(delivery_id, False, error.reason, {}, headers, body)
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            payload = None
        if not isinstance(payload, dict):
            return Received(delivery_id, False, "not_json", {}, headers, body)
        if not self._keys:
            return Received(delivery_id, False, "unsigned", payload, headers, body)
        self._seen = {i: s for i, s in self._seen.items() if now_s - s <= REPLAY_MEMORY_S}
        reason = "repeated" if delivery_id in self._seen else "verified"
        self._seen[delivery_id] = now_s
        return Received(delivery_id, True, reason, payload, headers, body)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = READ_TIMEOUT_S

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not (length.isascii() and length.isdigit()):
                self._answer(411)
            elif int(length[:12]) > MAX_BODY_BYTES:
                self._answer(413)
            else:
                body = self.rfile.read(int(length))
                self._answer(receiver.take({k.lower(): v for k, v in self.headers.items()}, body))

        def _answer(self, status: int) -> None:
            self.close_connection = True
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are shown by `on_event`, once."""

    return Handler


def show(console: Console, received: Received) -> None:
    """Print one message for a person: what it says in a line or two, then all of it."""
    name = escape(clean(received.delivery_id))
    if not received.verified and received.reason != "unsigned":
        console.print(f"[red]refused[/red] {name}: {escape(received.reason)}")
        return
    mark = (
        "[green]signature verified[/green]"
        if received.verified
        else "[yellow]not verified: no secret[/yellow]"
    )
    console.print(f"{mark}  webhook-id {name}")
    data = received.payload.get("data")
    if isinstance(data, dict):
        told = [received.payload.get("type"), data.get("severity"), data.get("title")]
        console.print("[bold]" + escape(clean("  ".join(str(text) for text in told if text))) + "[/bold]")
        if data.get("summary"):
            console.print(escape(clean(str(data["summary"]))))
    console.print_json(json.dumps(received.payload))


def serve(
    host: str, port: int, secret: str | None, on_event: Callable[[Received], None] | None = None
) -> None:
    """Listen until interrupted (Ctrl-C), printing every message unless `on_event` takes them."""
    console = Console(soft_wrap=True)
    with Receiver(
        secret=secret, on_event=on_event or (lambda received: show(console, received)), host=host, port=port
    ) as receiver:
        console.print(f"listening on [bold]{receiver.url}[/bold] (Ctrl-C ends)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return
