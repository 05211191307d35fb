"""kafka-python's sockets, read in large pieces: the same bytes, the same ends, the same errors."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.net.transport import KafkaTCPTransport

from monitor.sources.kafka_client import read_widely


class CountedSocket:
    """A socket that notes how often it is read."""

    def __init__(self, of: socket.socket) -> None:
        self.of, self.reads = of, 0

    def recv(self, most: int) -> bytes:
        self.reads += 1
        return self.of.recv(most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Any]]:
    """(The broker's end, a transport that reads the other)."""
    read_widely()
    read_widely()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        broker, _ = server.accept()
    client.setblocking(False)
    with broker, client:
        yield broker, KafkaTCPTransport(None, CountedSocket(client))


def test_all_that_was_sent_comes_in_order_and_few_reads(pair: tuple[socket.socket, Any]) -> None:
    broker, transport = pair
    sent, got, rounds = os.urandom(5_000_000), b"", 0
    sender = threading.Thread(target=broker.sendall, args=(sent,))
    sender.start()
    while len(got) < len(sent):
        part, error = transport._sock_recv()
        assert error is None
        got, rounds = got + part, rounds + 1
    sender.join()
    assert got == sent
    assert transport._sock.reads - 2 * rounds < len(sent) / 4_096 / 4


def test_nothing_there_is_no_error(pair: tuple[socket.socket, Any]) -> None:
    assert pair[1]._sock_recv() == (b"", None)


def test_the_last_bytes_of_a_closed_connection_come_with_its_end(pair: tuple[socket.socket, Any]) -> None:
    broker, transport = pair
    broker.sendall(b"last")
    broker.close()
    time.sleep(0.1)
    got, error = transport._sock_recv()
    assert got == b"last" and "disconnected" in str(error)


def test_a_broken_connection_is_an_error(pair: tuple[socket.socket, Any]) -> None:
    broker, transport = pair
    broker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broker.close()  # a reset, and no end
    time.sleep(0.1)
    got, error = transport._sock_recv()
    assert got == b"" and error is not None


def test_a_connection_that_another_thread_closes_in_between_ends(pair: tuple[socket.socket, Any]) -> None:
    broker, transport = pair
    broker.sendall(b"first")
    time.sleep(0.1)
    counted = transport._sock

    def recv_then_close(most: int) -> bytes:
        transport._sock = None
        return bytes(counted.recv(most))

    transport._sock = type("Closing", (), {"recv": staticmethod(recv_then_close)})()
    for expected in (b"first", b""):
        got, error = transport._sock_recv()
        assert got == expected and "closed" in str(error)
