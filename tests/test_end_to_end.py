"""The whole path on real parts: log -> windows -> detectors -> incidents -> signed webhook."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitor.listen import Received, Receiver
from tests import services
from tests.daemons import Daemon, command, rows, snapshot, totals, wait_for
from tests.logs import BAD_LINES, lines, with_bad_lines, write_log

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BUSY_S = 200.0  # a start on a machine that is busy with other things; nothing here asserts how fast one is
NO_TRAINING = "[training]\nenabled = false\n"


def write_config(
    path: Path, *, bootstrap: str, topic: str, database: str, webhook: str | None = None
) -> Path:
    channel = (
        f'[channels.test]\nurl = "{webhook}"\nsecret = "{SECRET}"\nallow_private = true\n' if webhook else ""
    )
    path.write_text(
        f'[source]\nbootstrap_servers = "{bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{topic}-group"\n'
        f'session_timeout_s = 6\n[database]\nurl = "{database}"\n[http]\nenabled = false\n'
        f"{NO_TRAINING}{channel}"
    )
    return path


def replay(log: Path, database: str, *options: str) -> dict[str, float]:
    """`inferwatch replay` as a process; its summary."""
    done = subprocess.run(
        command("replay", str(log), "--database", database, *options),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(summary, dict)
    return summary


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "services.jsonl", with_bad_lines(lines()))


@dataclass(frozen=True)
class Replayed:
    file: Path
    summary: dict[str, float]

    @property
    def database(self) -> str:
        return f"sqlite:///{self.file}"


@pytest.fixture(scope="module")
def reference(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """A replay that nothing interrupted, into SQLite; nobody changes it."""
    file = tmp_path_factory.mktemp("reference") / "reference.db"
    return Replayed(file, replay(log, f"sqlite:///{file}"))


def test_a_replay_accounts_for_every_message_and_finds_the_fault(log: Path, reference: Replayed) -> None:
    database, summary = reference.database, reference.summary
    produced = len(log.read_bytes().splitlines())
    assert summary["records"] == produced
    assert summary["rejected"] == len(BAD_LINES)
    counted = totals(database)
    assert counted["accepted"] + counted["rejected"] + counted["late"] + counted["duplicates"] == produced
    reasons = Counter(row["reason"] for row in rows(database, "select reason from rejected_records"))
    assert reasons == Counter(reason for _, reason in BAD_LINES)
    assert summary["windows"] == 3 * 360
    found = rows(database, "select * from alert_history where series = 'm-small/svc-0'")
    assert found and min(str(row["window_start"]) for row in found) >= "2026-03-02T04:5"
    assert summary["incidents"] >= 1


def test_replaying_the_same_log_again_changes_nothing(log: Path, reference: Replayed, tmp_path: Path) -> None:
    for file in reference.file.parent.glob(f"{reference.file.name}*"):
        shutil.copy(file, tmp_path)
    database = f"sqlite:///{tmp_path / reference.file.name}"
    assert replay(log, database)["records"] == 0
    assert snapshot(database) == snapshot(reference.database)


def test_postgresql_holds_the_same_rows_as_sqlite(
    log: Path, reference: Replayed, postgres_database: str
) -> None:
    replay(log, postgres_database)
    columns = "series, request_count, latency_p95_ms, error_rate, score, tail_probability, revision"
    statement = f"select {columns} from window_history order by series, window_start"
    assert rows(postgres_database, statement) == rows(reference.database, statement)
    ids = "select alert_id, incident_id, severity, reason from alert_history order by alert_id"
    assert rows(postgres_database, ids) == rows(reference.database, ids)


def test_a_replay_killed_at_any_moment_ends_like_one_that_was_not(
    log: Path, reference: Replayed, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'killed.db'}"
    for aim in (4_000, 9_000):
        with subprocess.Popen(
            command("replay", str(log), "--database", database, "--speed", "2000")
        ) as process:
            wait_for(f"record {aim}", lambda aim=aim: position(database) >= aim, BUSY_S)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
    assert position(database) < len(log.read_bytes().splitlines())
    replay(log, database)
    assert snapshot(database) == snapshot(reference.database)


@pytest.mark.kafka
def test_a_daemon_killed_in_the_middle_leaves_what_an_unkilled_one_leaves(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], tmp_path: Path
) -> None:
    topic = kafka_topic(partitions=1)
    messages = with_bad_lines(lines(minutes=400))
    half = len(messages) // 2
    services.produce(kafka_bootstrap, topic, messages[:half])
    killed = read_topic(tmp_path / "killed", kafka_bootstrap, topic, kill_at=half // 2, then=messages[half:])
    undisturbed = read_topic(tmp_path / "undisturbed", kafka_bootstrap, topic)
    assert killed == undisturbed
    assert undisturbed["incident_history"]


def read_topic(
    folder: Path, bootstrap: str, topic: str, *, kill_at: int | None = None, then: Sequence[bytes] = ()
) -> dict[str, list[tuple[object, ...]]]:
    """What a daemon leaves that reads a whole topic; killed at a record if asked, while more arrives."""
    folder.mkdir()
    received: list[Received] = []
    database = f"sqlite:///{folder / 'daemon.db'}"
    with Receiver(secret=SECRET, on_event=received.append) as receiver:
        config = write_config(
            folder / "inferwatch.toml",
            bootstrap=bootstrap,
            topic=topic,
            database=database,
            webhook=receiver.url,
        )
        daemon = Daemon(config, folder / "log")
        if kill_at is not None:
            with daemon:
                wait_for(f"record {kill_at}", lambda: position(database) >= kill_at, BUSY_S, daemon)
                daemon.kill()
        services.produce(bootstrap, topic, then)
        produced = services.end_offset(bootstrap, topic)
        with daemon:
            wait_for("the whole topic", lambda: position(database) == produced, BUSY_S, daemon)
            opened = "select incident_id from incident_history"
            wait_for("a webhook each", lambda: delivered(received, rows(database, opened)), BUSY_S, daemon)
            assert daemon.stop() == 0
    assert all(event.verified for event in received)
    return snapshot(database)


def position(database: str) -> int:
    try:
        return totals(database)["position"]
    except Exception:  # the daemon is still making the database
        return -1


def delivered(received: list[Received], incidents: list[dict[str, object]]) -> bool:
    opened = {event.payload["data"]["id"] for event in received if event.payload["type"] == "incident.opened"}
    return bool(incidents) and opened == {row["incident_id"] for row in incidents}
