"""The HTTP server, in a thread of its own: it ends with the daemon and never holds up the pipeline."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Scope

from monitor.errors import ConfigError, InferwatchError

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
GRACEFUL_S = 1
MAX_CONNECTIONS = 100


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """A running server. `url` ends without a slash."""

    url: str
    _server: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        """End it; open requests get a second."""
        self._server.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)


def serve_in_thread(app: Starlette, host: str, port: int) -> ServerHandle:
    """Bind `host:port` (0 = any free port) and serve.

    Raises ConfigError when the address cannot be bound, InferwatchError when the server does not come up.
    """
    listener = _bind(host, port)
    bound = listener.getsockname()[1]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_serve, args=(server, app, listener), name="http", daemon=True)
    thread.start()
    waited = threading.Event()
    for _ in range(int(START_TIMEOUT_S / 0.01)):
        if server.started or not thread.is_alive():
            break
        waited.wait(0.01)
    if not server.started:
        raise InferwatchError(f"the HTTP server did not start at {host}:{port}")
    shown = f"[{host}]" if ":" in host else host
    return ServerHandle(f"http://{shown}:{bound}", server, thread)


def require_address(host: str, port: int) -> None:
    """Raises ConfigError when the address cannot be bound, before anything else is begun."""
    _bind(host, port).close()


def _serve(server: uvicorn.Server, app: Starlette, listener: socket.socket) -> None:
    with listener:
        asyncio.run(_ask_itself(app))
        server.run(sockets=[listener])


async def _ask_itself(app: Starlette) -> None:
    """What the first question to a process loads and compiles, for 0.1 s, without asking the database: routes
    are made where a path is looked up among them, and threads by a library of their own.
    """
    path = "/none"
    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        """Nobody hears that there is no such page."""

    await run_in_threadpool(bool)
    await app.router(scope, receive, send)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            "http.port",
            port,
            f"{host}:{port} cannot be bound ({error.strerror}); use another, or 0 for a free one",
        ) from None
    return listener
