"""`inferwatch run --workers N`: they share the partitions, are started anew, and end with their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.config import Settings
from monitor.daemon import EXIT_FORCED
from monitor.errors import ConfigError
from monitor.workers import require_for_workers
from tests import services
from tests.daemons import command, rows, totals, wait_for
from tests.fleet import owner_pid
from tests.logs import lines

PARTITIONS = 4
SUPERVISE = """
import sys
from monitor import logs, workers
workers.KILL_AFTER_S = 1.0
logs.configure("info")
programs = [([sys.executable, "-c", program], {}) for program in sys.argv[1:]]
sys.exit(workers.Supervisor(programs).run())
"""
NOTE = "import os, signal, time; open({path!r}, 'a').write(f'{{os.getpid()}} ')\n"
WAITS = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\ntime.sleep(600)"
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
WATCHES = "from monitor.workers import end_with_parent\nend_with_parent()\n"


@contextmanager
def supervised(*programs: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, *programs], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def pids(path: Path) -> list[int]:
    """Of every start that was noted."""
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def lives(pid: int) -> bool:
    """False for one that has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_dies_is_started_anew_and_the_others_are_left_alone(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    programs = [NOTE.format(path=str(path)) + WAITS for path in (calm, killed)]
    with supervised(*programs) as process:
        wait_for("both", lambda: len(pids(calm)) == len(pids(killed)) == 1, 60)
        os.kill(pids(killed)[0], signal.SIGKILL)
        wait_for("a new start", lambda: len(pids(killed)) == 2, 60)
        time.sleep(0.3)  # until it has set its handler
        process.terminate()
        assert process.wait(30) == 0
        assert len(pids(calm)) == 1
        assert not any(map(lives, pids(calm) + pids(killed)))


def test_a_first_start_that_would_end_in_the_same_way_again_ends_all_of_them(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    fails = "import sys, time; time.sleep(1); sys.exit(78)"
    with supervised(NOTE.format(path=str(calm)) + WAITS, fails) as process:
        assert process.wait(60) == 78
        assert not any(map(lives, pids(calm)))


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn"
    with supervised(NOTE.format(path=str(stubborn)) + IGNORES) as process:
        wait_for("its start", lambda: len(pids(stubborn)) == 1, 60)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == EXIT_FORCED
        assert not lives(pids(stubborn)[0])


def test_workers_end_with_whoever_started_them(tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    with supervised(WATCHES + NOTE.format(path=str(orphan)) + WAITS) as process:
        wait_for("its start", lambda: len(pids(orphan)) == 1, 60)
        process.kill()
        wait_for("its end", lambda: not lives(pids(orphan)[0]), 30)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"source": {"kind": "file", "paths": ["log"]}}, "source.kind"),
        ({"database": {"url": "sqlite:///inferwatch.db"}}, "database.url"),
        ({"database": {"url": "postgresql://db/x"}, "http": {"port": 65_535}}, "http.port"),
    ],
)
def test_what_cannot_be_shared_is_said_at_once(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=r"--workers 2 .*; (run one|choose less)") as raised:
        require_for_workers(Settings.model_validate(settings), 2)
    assert raised.value.key == key


def test_several_workers_over_sqlite_are_a_wrong_configuration() -> None:
    done = subprocess.run(command("run", "--workers", "2"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "need PostgreSQL" in done.stderr


def two_free_ports() -> int:
    """The first of two that follow each other."""
    while True:
        port = services.free_ports(1)[0]
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


@pytest.mark.kafka
@pytest.mark.postgres
def test_workers_share_the_partitions_and_read_every_record_once(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], postgres_database: str, tmp_path: Path
) -> None:
    topic, port = kafka_topic(partitions=PARTITIONS), two_free_ports()
    logs = [lines(services=2, minutes=30, per_minute=8, seed=number) for number in range(PARTITIONS)]
    for number, log in enumerate(logs):
        services.produce(kafka_bootstrap, topic, log[: len(log) // 2], partition=number)
    config, said = tmp_path / "inferwatch.toml", tmp_path / "log"
    config.write_text(
        f'[source]\nbootstrap_servers = "{kafka_bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{topic}"\n'
        f'session_timeout_s = 6\n[database]\nurl = "{postgres_database}"\ncommit_interval_s = 0.3\n'
        f"[http]\nport = {port}\n[training]\nenabled = false\n"
    )

    def owners() -> dict[int, int]:
        """Process -> partitions that it owns."""
        found: dict[int, int] = {}
        for row in rows(postgres_database, "select owner from partitions where owner is not null"):
            pid = owner_pid(row["owner"])
            found[pid] = found.get(pid, 0) + 1
        return found

    def shared() -> bool:
        return sorted(owners().values()) == [2, 2] and all(map(lives, owners()))

    with (
        said.open("wb") as out,
        subprocess.Popen(
            command("run", "--workers", "2", "--config", str(config)), stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_for(
                "two workers with two partitions each",
                lambda: said.read_text().count('"started"') == 2 and shared(),
                180,
            )
            for number in (port, port + 1):
                with urllib.request.urlopen(f"http://127.0.0.1:{number}/healthz", timeout=10) as answer:
                    assert answer.status == 200
            os.kill(next(iter(owners())), signal.SIGKILL)
            for number, log in enumerate(logs):
                services.produce(kafka_bootstrap, topic, log[len(log) // 2 :], partition=number)
            wait_for("two workers again", shared, 180)
            records = sum(map(len, logs))
            wait_for("every record", lambda: totals(postgres_database)["records"] == records, 60)
            process.terminate()
            assert process.wait(30) == 0, said.read_text()[-3000:]
        finally:
            process.kill()
    assert not owners()
