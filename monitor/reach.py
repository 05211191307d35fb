"""Why a Kafka broker cannot be used: nothing listens, no TLS, or it lets us not in.

The Kafka client tells these apart for nobody: it tries again until its time is over. Here each step that
leads to a broker is taken by itself.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from monitor.config import SourceSettings

DEFAULT_PORT = 9092


def nobody_listens(source: SourceSettings, timeout_s: float) -> tuple[str, str] | None:
    """(what is wrong, what to do about it) when no broker takes a connection; None when one does."""
    found = _first_open(source, timeout_s)
    if isinstance(found, str):
        return f"nothing listens at {found}", "start the broker or correct source.bootstrap_servers"
    found[2].close()
    return None


def broker_trouble(source: SourceSettings, timeout_s: float) -> tuple[str, str]:
    """(what is wrong, what to do about it) for brokers that the client could not use."""
    found = _first_open(source, timeout_s)
    if isinstance(found, str):
        return f"nothing listens at {found}", "start the broker or correct source.bootstrap_servers"
    server, host, connection = found
    with contextlib.closing(connection):
        return _behind_the_door(source, server, host, connection)


def _first_open(source: SourceSettings, timeout_s: float) -> tuple[str, str, socket.socket] | str:
    """The first server that takes a connection, or what each of them said instead."""
    nobody: list[str] = []
    for server in (part.strip() for part in source.bootstrap_servers.split(",") if part.strip()):
        host, port = _address(server)
        try:
            return server, host, socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            nobody.append(f"{server}: {error.strerror or error}")
    return "; ".join(nobody)


def _address(server: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or a bare host."""
    host, colon, port = server.rpartition(":")
    if not colon or not port.isdigit():
        host, port = server, str(DEFAULT_PORT)
    return host.strip("[]"), int(port)


def _behind_the_door(
    source: SourceSettings, server: str, host: str, connection: socket.socket
) -> tuple[str, str]:
    """A server that listens and that the client could not use nevertheless."""
    protocol = source.security_protocol
    if protocol.endswith("SSL"):
        try:
            context = ssl.create_default_context(cafile=source.ssl_cafile)
            if source.ssl_certfile is not None:
                context.load_cert_chain(source.ssl_certfile, source.ssl_keyfile)
            with context.wrap_socket(connection, server_hostname=host):
                pass
        except ssl.SSLCertVerificationError as error:
            said = f"the certificate of {server} is not trusted: {error.verify_message}"
            return (
                said,
                "name its authority in source.ssl_cafile and the broker as its certificate does",
            )
        except (OSError, ValueError) as error:
            said = f"{server} listens but does no TLS: {getattr(error, 'reason', None) or error}"
            return said, f"correct source.security_protocol ({protocol}), the port, or the ssl_ files"
    if protocol.startswith("SASL"):
        return (
            f"{server} listens but does not let {source.sasl_username!r} in with {source.sasl_mechanism}",
            "check source.sasl_username, its password and source.sasl_mechanism, then what the user may do",
        )
    return (
        f"{server} listens but does not answer as a Kafka broker with {protocol}",
        "correct source.security_protocol or the port",
    )
