"""What `doctor` says of a broker that cannot be used: real sockets, one step of the way at a time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from monitor import doctor
from monitor.config import Settings
from monitor.reach import broker_trouble
from tests import services


@contextmanager
def listener(answer: bytes = b"") -> Iterator[str]:
    """Somebody who takes connections, says `answer` and hangs up when we have spoken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    connection.recv(1_000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def settings(servers: str, protocol: str) -> Settings:
    source = {"bootstrap_servers": servers, "security_protocol": protocol}
    if protocol.startswith("SASL"):
        source |= {"sasl_mechanism": "PLAIN", "sasl_username": "ann", "sasl_password_env": "PASSWORD"}
    return Settings.model_validate({"source": source})


def test_a_closed_port_is_told_from_a_door_that_stays_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "wrong")
    closed = f"127.0.0.1:{services.free_ports(1)[0]}"
    said, fix = broker_trouble(settings(closed, "SASL_PLAINTEXT").source, 2.0)
    assert said.startswith(f"nothing listens at {closed}: ") and "start the broker" in fix
    with listener() as open_:
        said, fix = broker_trouble(settings(f"{closed}, {open_}", "SASL_PLAINTEXT").source, 2.0)
        assert said == f"{open_} listens but does not let 'ann' in with PLAIN"
        assert "password" in fix and "sasl_mechanism" in fix
        said, fix = broker_trouble(settings(open_, "PLAINTEXT").source, 2.0)
        assert "does not answer as a Kafka broker" in said and "security_protocol" in fix
    with listener(b"this is no TLS record, but some other protocol\n") as plain:
        said, fix = broker_trouble(settings(plain, "SASL_SSL").source, 2.0)
        assert said.startswith(f"{plain} listens but does no TLS: ") and "security_protocol" in fix


def test_doctor_says_which_of_them_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CONNECT_TIMEOUT_S", 0.5)
    closed = f"127.0.0.1:{services.free_ports(1)[0]}"
    found = {check.name: check for check in doctor.check_world(settings(closed, "PLAINTEXT"))}
    assert not found["broker"].ok and found["broker"].fix.startswith("start the broker")
    monkeypatch.delenv("PASSWORD", raising=False)
    found = {check.name: check for check in doctor.check_world(settings(closed, "SASL_PLAINTEXT"))}
    assert "PASSWORD" in found["broker"].detail and "[source]" in found["broker"].fix
