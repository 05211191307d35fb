"""A broker with SASL/SCRAM over TLS, and a log full of secrets: none of them is found anywhere afterwards."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.clock import SystemClock
from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources.kafka import KafkaSource
from tests import services
from tests.certificates import make_certificates
from tests.daemons import Daemon, command, rows, totals, wait_for
from tests.logs import lines

USER, PASSWORD = "inferwatch", "correct-horse-7319"
CANARY = "zq7-Canary-tr0ut"
JAAS = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


# kafka-python does not close the socket of a TLS connection that fails
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@pytest.fixture(autouse=True)
def _the_client_leaves_nothing_to_later_tests() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class SecureBroker(services.Broker):
    """PLAINTEXT for the test itself, SASL_SSL with SCRAM-SHA-256 for what is tested."""

    def __init__(self) -> None:
        super().__init__()
        (self.secure_port,) = services.free_ports(1)
        self.cafile = make_certificates(self.directory)
        plain, secure = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.secure_port}"
        self.properties = {
            "listeners": f"PLAINTEXT://{plain},SECURE://{secure},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{plain},SECURE://{secure}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": str(self.directory / "keystore.pem"),
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.secure.scram-sha-256.sasl.jaas.config": JAAS,
        }

    def start(self) -> SecureBroker:
        from kafka import KafkaAdminClient
        from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

        super().start()
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            user = UserScramCredentialUpsertion(USER, ScramMechanism.SCRAM_SHA_256, PASSWORD)
            assert admin.alter_user_scram_credentials([user]) == {USER: None}
        finally:
            admin.close()
        return self

    def settings(self, topic: str, **more: object) -> dict[str, object]:
        return {
            "bootstrap_servers": f"127.0.0.1:{self.secure_port}", "topics": [topic],
            "group_id": f"{topic}-group", "session_timeout_s": 6.0, "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-256",
            "sasl_username": USER, "ssl_cafile": str(self.cafile), **more,
        }  # fmt: skip


@pytest.fixture(scope="module")
def broker() -> Iterator[SecureBroker]:
    service = SecureBroker().start()
    yield service
    service.stop()


def poll_for(source: KafkaSource, seconds: float) -> list[object]:
    events: list[object] = []
    deadline = time.monotonic() + seconds
    while not events and time.monotonic() < deadline:
        events += source.poll(0.2)
    return events


@pytest.mark.kafka
def test_the_password_comes_from_a_file_and_a_wrong_one_lets_nobody_in(
    broker: SecureBroker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic = services.create_topic(broker.bootstrap)
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    right = SourceSettings.model_validate(broker.settings(topic, sasl_password_file=password))
    source = KafkaSource(right, SystemClock())
    try:
        assert poll_for(source, 60)
    finally:
        source.close()
    password.write_text("not-the-password")
    caplog.clear()
    source = KafkaSource(right, SystemClock())
    try:
        assert not poll_for(source, 4)  # the client does not tell it from a broker that is away
    finally:
        source.close()
    assert "not-the-password" not in caplog.text + capsys.readouterr().out
    password.unlink()
    with pytest.raises(SourceError, match="sasl_password_file"):
        poll_for(KafkaSource(right, SystemClock()), 10)


@pytest.mark.kafka
def test_a_broker_with_a_foreign_certificate_is_not_trusted(broker: SecureBroker, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    topic = services.create_topic(broker.bootstrap)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    settings = broker.settings(topic, sasl_password_file=password, ssl_cafile=str(tmp_path / "ca.pem"))
    source = KafkaSource(SourceSettings.model_validate(settings), SystemClock())
    try:
        assert not poll_for(source, 5)
    finally:
        source.close()


def log_with_canaries() -> list[bytes]:
    """Records with a canary in unknown fields, in what is compared and thrown away, rejected, and late."""
    messages = []
    for i, line in enumerate(lines(services=2, minutes=160, per_minute=8, fault_at=110)):
        record = json.loads(line)
        record |= {"prompt": f"{CANARY} {i}", "messages": [{"role": "user", "content": CANARY}]}
        record |= {"output": CANARY, "prediction": CANARY, "label": CANARY, "metrics": {"x": 1.0}}
        messages.append(json.dumps(record).encode())
    good = json.loads(messages[-1])
    bad = [
        CANARY.encode(),
        b'{"prompt": "' + CANARY.encode() + b"\xff",
        json.dumps({**good, "latency_ms": -1}).encode(),
        json.dumps({**good, "latency_ms": CANARY}).encode(),
        json.dumps({**good, "model": {"prompt": CANARY}}).encode(),
        json.dumps({"prompt": CANARY}).encode(),
        json.dumps({**good, "timestamp": CANARY}).encode(),
        json.dumps({**good, "metrics": {"x": CANARY}}).encode(),
        json.dumps([CANARY]).encode(),
        json.dumps({CANARY: 1}).encode(),
        (b'{"prompt": "' + CANARY.encode() + b'", "x": ' + b"[" * 2_000),
    ]
    late = [m.replace(b'"request_id": "req', b'"request_id": "late') for m in messages[200:210]]
    return [*messages, *bad, *late, *messages[-3:]]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


@pytest.mark.kafka
def test_neither_prompts_nor_secrets_are_found_anywhere_afterwards(
    broker: SecureBroker, tmp_path: Path
) -> None:
    topic = services.create_topic(broker.bootstrap)
    messages = log_with_canaries()
    services.produce(broker.bootstrap, topic, messages)
    database = f"sqlite:///{tmp_path / 'watch.db'}"
    (port,) = services.free_ports(1)
    config = tmp_path / "inferwatch.toml"
    values = broker.settings(topic, sasl_password_env="KAFKA_PASSWORD")
    config.write_text(
        "[source]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        + f'[database]\nurl = "{database}"\ncommit_interval_s = 0.3\n[http]\nport = {port}\n'
        + "[training]\nenabled = false\n"
    )  # fmt: skip
    environment = {"KAFKA_PASSWORD": PASSWORD}
    with Daemon(config, tmp_path / "daemon.log", environment) as daemon:
        wait_for("the whole topic", lambda: _position(database) == len(messages), 240, daemon)
        incident = "select incident_id from incident_history"
        wait_for("an incident", lambda: bool(rows(database, incident)), 60, daemon)
        found = totals(database)
        assert found["rejected"] == 11 and found["late"] > 0 and found["duplicates"] > 0
        base = f"http://127.0.0.1:{port}"
        incidents = rows(database, incident)
        paths = ["incidents", "alerts", "series", "deliveries", "models", "windows?series=m-small/svc-0"]
        paths += [f"incidents/{row['incident_id']}" for row in incidents]
        answers = {path: get(f"{base}/api/v1/{path}") for path in paths}
        answers |= {path: get(base + path) for path in ("/", "/metrics", "/healthz")}
        assert "svc-0" in answers["series"] and "inferwatch_records_total" in answers["/metrics"]
        daemon.stop(60)
    shown = subprocess.run(
        command("config", "show", "--config", str(config), "--json"), capture_output=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    places = {**{name: text.encode() for name, text in answers.items()}, "config show": shown.stdout}
    for file in tmp_path.iterdir():
        places[file.name] = file.read_bytes()
    assert len(places) >= 12 and len(places["watch.db"]) > 100_000
    for secret in (CANARY, CANARY.lower(), "anary", PASSWORD):
        assert [name for name, content in places.items() if secret.encode() in content] == []


def _position(database: str) -> int:
    try:
        return totals(database)["position"]
    except Exception:  # the daemon is still making the database
        return -1
