"""Real HTTP receivers for tests: each answers as it is told, and remembers what came."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook(ThreadingHTTPServer):
    """`script` answers the requests in turn, its last entry all that follow.

    An entry is a status, a (status, headers) pair, or a function that gets the handler.
    """

    daemon_threads = True

    def __init__(self, *script: Any, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.script = list(script) or [200]
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    @property
    def ids(self) -> list[str]:
        with self.lock:
            return [headers["webhook-id"] for headers, _ in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
        answer = self.server.script[min(number, len(self.server.script) - 1)]
        if callable(answer):
            answer(self)
            return
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def hook(*script: Any, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Hook]:
    """Serves until the end of the block; `port` 0 = any that is free."""
    server = Hook(*script, port=port)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hang(seconds: float = 30.0) -> Callable[[_Handler], None]:
    """Never answers."""

    def answer(handler: _Handler) -> None:
        time.sleep(seconds)

    return answer


def drip_headers(handler: _Handler) -> None:
    """One byte of the header at a time, for ever: no single read ever times out."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while True:
            handler.wfile.write(b"a")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        return


def endless_body(handler: _Handler) -> None:
    """A gigabyte behind a good status."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
        for _ in range(1024):
            handler.wfile.write(bytes(1 << 20))
    except OSError:
        return


def garbage(handler: _Handler) -> None:
    handler.wfile.write(b"\x00\xffnot http at all\r\n\r\n")


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Poll until the condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
