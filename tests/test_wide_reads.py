"""kafka-python's sockets, read in large pieces: the same bytes, the same ends, the same errors."""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.frame import KafkaBytes
from kafka.protocol.parser import KafkaProtocol

from monitor.sources import wide_reads
from monitor.sources.wide_reads import LARGE_BYTES, TURN_BYTES, Frame, read_widely
from tests.certificates import make_certificates

TLS_RECORD_BYTES = 16 << 10


class CountedSocket:
    """A socket that notes how often it is read."""

    def __init__(self, of: socket.socket) -> None:
        self.of, self.reads = of, 0

    def recv(self, most: int) -> bytes:
        self.reads += 1
        return self.of.recv(most)

    def recv_into(self, place: memoryview) -> int:
        self.reads += 1
        return self.of.recv_into(place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, certificates: Path) -> Iterator[tuple[socket.socket, Any]]:
    """(The broker's end, a transport that reads the other)."""
    read_widely()
    read_widely()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        broker, _ = server.accept()
    kind: Any = KafkaTCPTransport
    if request.param == "tls":
        kind = KafkaSSLTransport
        ours = ssl.create_default_context(cafile=certificates / "ca.pem")
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(certificates / "keystore.pem")
        with ThreadPoolExecutor(1) as pool:
            shaken = pool.submit(theirs.wrap_socket, broker, server_side=True)
            client = ours.wrap_socket(client, server_hostname="127.0.0.1")
            broker = shaken.result()
    client.setblocking(False)
    transport = kind.__new__(kind)  # a TLS transport wraps its socket itself
    KafkaTCPTransport.__init__(transport, None, CountedSocket(client))
    with broker, client:
        yield broker, transport


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
    assert transport._sock_recv() == (b"last", None)
    got, error = transport._sock_recv()
    assert got == b"" and "disconnected" in str(error)


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
    assert transport._sock_recv() == (b"first", None)
    for _ in range(2):
        got, error = transport._sock_recv()
        assert got == b"" and "closed" in str(error)


class Connection:
    """What a transport knows of its connection: where bytes go, and which responses they were."""

    _sensors = None

    def __init__(self) -> None:
        self.parser = KafkaProtocol()


def fetch_response(number: int, records: list[bytes], version: int) -> bytes:
    partitions = [
        FetchResponse.FetchableTopicResponse.PartitionData(
            version=version, partition_index=i, error_code=0, high_watermark=9, records=part
        )
        for i, part in enumerate(records)
    ]
    topic = FetchResponse.FetchableTopicResponse(version=version, topic="logs", partitions=partitions)
    response = FetchResponse(version=version, responses=[topic])
    response.with_header(correlation_id=number)
    return bytes(response.encode(framed=True, header=True))


@pytest.mark.parametrize(("version", "turn_bytes"), [(4, 10_000), (11, 100_000), (12, TURN_BYTES)])
def test_responses_of_any_size_in_any_pieces_are_what_was_sent(
    pair: tuple[socket.socket, Any], version: int, turn_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, transport = pair
    monkeypatch.setattr(wide_reads, "TURN_BYTES", turn_bytes)
    connection = transport._protocol = Connection()
    dice = random.Random(version)
    sizes = [0, 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 300_000, 3_000_000]
    sent = [[dice.randbytes(dice.choice(sizes)) for _ in range(dice.randint(1, 4))] for _ in range(25)]
    wire = b""
    for number, records in enumerate(sent):
        request = FetchRequest(version=version)
        request.with_header(correlation_id=number)
        connection.parser.in_flight_requests.append(request.header)
        if number == len(sent) - 1:  # whole records of TLS, and nothing behind them that would wake a reader
            spare = -len(fetch_response(number, records, version)) % TLS_RECORD_BYTES
            records[0] += dice.randbytes(3_000_000 // TLS_RECORD_BYTES * TLS_RECORD_BYTES + spare)
            last = fetch_response(number, records, version)
        else:
            wire += fetch_response(number, records, version)

    def send() -> None:
        at = 0
        while at < len(wire):
            end = at + dice.choice([1, 3, 4, 5, 1_000, 70_000, 1_500_000])
            broker.sendall(wire[at:end])
            at = end
        broker.sendall(last)

    sender = threading.Thread(target=send)
    sender.start()
    got: list[Any] = []
    deadline = time.monotonic() + 30
    while len(got) < len(sent) and time.monotonic() < deadline:
        if not select.select([transport._sock], [], [], 0.2)[0]:  # as the client waits
            continue
        data, error = transport._sock_recv()
        assert error is None
        got += connection.parser.receive_bytes(data)
    sender.join()
    assert [number for number, _ in got] == list(range(len(sent)))
    found = [[part.records for part in response.responses[0].partitions] for _, response in got]
    assert found == sent
    kinds = {type(part) for parts in found for part in parts if len(part) >= LARGE_BYTES}
    assert kinds == {memoryview}, "large ones are not copied"
    assert all(part.readonly for parts in found for part in parts if isinstance(part, memoryview))


def test_a_connection_that_ends_within_a_response_is_an_error(pair: tuple[socket.socket, Any]) -> None:
    broker, transport = pair
    connection = transport._protocol = Connection()
    broker.sendall(fetch_response(0, [bytes(500_000)], 12)[:400_000])
    broker.close()
    for _ in range(1_000):
        data, error = transport._sock_recv()
        if error is not None:
            break
        assert connection.parser.receive_bytes(data) == []
        time.sleep(0.001)
    assert "disconnected" in str(error)


@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=300),
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.one_of(st.none(), st.integers(0, 300))),
            st.tuples(st.just("seek"), st.integers(0, 300)),
            st.tuples(st.just("write"), st.binary(max_size=50)),
        ),
        max_size=12,
    ),
)
def test_a_frame_is_read_and_written_as_the_client_s_own(data: bytes, steps: list[tuple[str, Any]]) -> None:
    ours, theirs = Frame(len(data)), KafkaBytes(len(data))
    for frame in (ours, theirs):
        frame.write(data)
        frame.seek(0)
    for name, argument in steps:
        if name == "seek":
            argument = min(argument, len(data))
        if name == "write":
            argument = argument[: len(data) - theirs.tell()]
        assert getattr(ours, name)(argument) == getattr(theirs, name)(argument)
        assert ours.tell() == theirs.tell() and len(ours) == len(theirs)
