"""kafka-python's way from the socket to the records of a fetch response, with one copy instead of seven.

kafka-python 3.0.12 reads 4 KB at a time for as long as there is something, giving the interpreter's lock away
with each of them, joins and slices what it read, and copies a response three times before its records are
looked at. Here a large response is read straight into the memory in which its records are found. What ends a
connection or goes wrong, the client's own code still finds.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import numpy as np
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol import parser
from kafka.protocol.consumer import FetchResponse
from kafka.protocol.frame import KafkaBytes

WIDE_BYTES = 256 << 10
TURN_BYTES = 1 << 20
LARGE_BYTES = 64 << 10  # a response from here on is not copied


class Frame:
    """The bytes of one large response, in the place of kafka-python's KafkaBytes.

    What is large is read as a read-only view of the same memory.
    """

    def __init__(self, size: int) -> None:
        # not filled with zeros, in large pages where there are any
        self._bytes = memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]
        self._at = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size: int | None = None) -> bytes | memoryview:
        """The next `size` bytes, or all that is left."""
        start, self._at = self._at, len(self) if size is None else min(self._at + size, len(self))
        return whole_or_copied(self._bytes[start : self._at].toreadonly())

    def write(self, data: bytes | memoryview) -> None:
        start, self._at = self._at, self._at + len(data)
        self._bytes[start : self._at] = data

    def receive(self, socket: Any, most: int) -> int:
        """Read from a socket for as long as there is something, at most `most` bytes; returns how many.

        The last byte of the frame is left to the parser, which sees by it that the frame is complete.
        Raises what the socket raises, and ConnectionError at its end.
        """
        before, stop = self._at, min(self._at + most, len(self) - 1)
        while self._at < stop:
            came = socket.recv_into(self._bytes[self._at : min(self._at + WIDE_BYTES, stop)])
            if not came:
                raise ConnectionError
            self._at += came
        return self._at - before


def whole_or_copied(view: memoryview) -> bytes | memoryview:
    """A large view as it is, a small one as bytes."""
    return view if len(view) >= LARGE_BYTES else bytes(view)


def read_widely() -> None:
    """From now on sockets are read WIDE_BYTES at a time, at most TURN_BYTES in one turn, and large responses
    are not copied; calling it again changes nothing.
    """
    if not hasattr(KafkaTCPTransport._sock_recv, "is_wide"):
        for transport in (KafkaTCPTransport, KafkaSSLTransport):
            transport._sock_recv = _wide(transport._sock_recv)
        parser.KafkaBytes = lambda size: Frame(size) if size >= LARGE_BYTES else KafkaBytes(size)
        FetchResponse._struct.compiled_decode_from = _sparing(FetchResponse._struct.compiled_decode_from)


def _wide(narrow: Callable[[Any], tuple[bytes, Any]]) -> Callable[[Any], tuple[bytes, Any]]:
    """In the place of the transport's own reading: what is not read into a frame at once, and an error."""

    def receive(transport: Any) -> tuple[bytes, Any]:
        frame = getattr(getattr(transport._protocol, "parser", None), "_rbuffer", None)
        socket = transport._sock
        try:
            came = frame.receive(socket, TURN_BYTES) if isinstance(frame, Frame) else 0
            if came >= TURN_BYTES and not _decrypted(socket):
                return b"", None
            found = socket.recv(WIDE_BYTES)
            while found and _decrypted(socket):
                found += socket.recv(WIDE_BYTES)
            if found:
                return found, None
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b"", None
        except (OSError, AttributeError):  # the latter where another thread has closed it
            pass
        if transport._sock is None:
            return b"", KafkaConnectionError("closed while it was read")
        return narrow(transport)

    receive.is_wide = True  # type: ignore[attr-defined]
    return receive


def _decrypted(socket: Any) -> int:
    """Bytes that TLS holds ready: nobody who waits for the socket hears of them."""
    pending: int = socket.pending() if hasattr(socket, "pending") else 0
    return pending


def _sparing(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of decoders whose decoders take large bytes as they are: what they call `bytes` does."""

    def make(*arguments: Any, **options: Any) -> Any:
        decode = compiled(*arguments, **options)
        decode.__globals__["bytes"] = whole_or_copied
        return decode

    return make
