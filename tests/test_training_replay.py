"""A replay that trains on its own windows: what is registered, when it is in force, and that it repeats."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import command, rows
from tests.logs import MINUTE_MS, START_MS, lines, write_log

pytestmark = pytest.mark.timeout(600)  # compiles, trains and replays

SERVICES, TRAINED_H, ACTIVE_H, ENDS_H = 4, 7, 8, 8.5
HOUR_MS = 60 * MINUTE_MS
SCORES = "select s.name, w.window_start_ms, w.score, w.gbdt_score, w.lstm_score from windows w join series s "
SCORES += "on s.id = w.series_id"


def replay(folder: Path, log: Path, *, training: bool) -> str:
    """The database URL of a replay in a process of its own."""
    url = f"sqlite:///{folder / 'replay.db'}"
    enabled = "true" if training else "false"
    config = folder / "inferwatch.toml"
    config.write_text(f"[training]\nenabled = {enabled}\nfirst_after_h = {TRAINED_H}\ndrift_every_h = 0\n")
    arguments = ("replay", str(log), "--config", str(config), "--database", url)
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return url


def scores(url: str) -> dict[tuple[str, int], tuple[float, ...]]:
    return {
        (row["name"], row["window_start_ms"]): (row["score"], row["gbdt_score"], row["lstm_score"])
        for row in rows(url, SCORES)
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = lines(services=SERVICES, minutes=round(60 * ENDS_H), per_minute=4, fault_at=None)
    return write_log(tmp_path_factory.mktemp("log") / "services.jsonl", made)


@pytest.fixture(scope="module")
def trained(log: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return replay(tmp_path_factory.mktemp("trained"), log, training=True)


def version(url: str) -> dict[str, Any]:
    """The one that the replay has registered, as the command shows it."""
    listed = subprocess.run(
        command("models", "list", "--database", url, "--json"), capture_output=True, text=True, check=True
    )
    (found,) = json.loads(listed.stdout)
    assert isinstance(found, dict)
    return found


def test_a_version_is_registered_with_what_was_measured(trained: str) -> None:
    found = version(trained)
    (stored,) = rows(trained, "select trained_at_ms, sha256, artifact from models")
    assert START_MS + TRAINED_H * HOUR_MS <= stored["trained_at_ms"] < START_MS + ACTIVE_H * HOUR_MS
    assert len(stored["artifact"]) > 100_000 and len(stored["sha256"]) == 64
    assert found["status"] in ("champion", "refused") and found["reason"]
    measured = found["metrics"]
    assert 0.0 <= measured["champion_average_precision"] <= 1.0
    assert 0.0 <= measured["challenger_average_precision"] <= 1.0
    better = measured["challenger_average_precision"] > measured["champion_average_precision"]
    assert better or found["status"] == "refused"


def test_it_comes_into_force_an_hour_behind_its_windows_and_not_before(
    trained: str, log: Path, tmp_path: Path
) -> None:
    found, (partition,) = version(trained), rows(trained, "select model_version from partitions")
    promoted = found["status"] == "champion"
    assert (partition["model_version"] == found["version"]) == promoted
    with_it, without = scores(trained), scores(replay(tmp_path, log, training=False))
    assert with_it.keys() == without.keys() and len(with_it) > 0.99 * SERVICES * 60 * ENDS_H
    gate_ms = rows(trained, "select trained_at_ms from models")[0]["trained_at_ms"] + HOUR_MS
    early = [key for key in with_it if key[1] + 2 * MINUTE_MS <= gate_ms]  # closed before it, lateness over
    late = [key for key in with_it if key[1] >= gate_ms]
    assert len(early) > 10 * len(late) > 0
    assert all(with_it[key] == without[key] for key in early)
    assert any(with_it[key] != without[key] for key in late) == promoted


def test_the_same_log_gives_the_same_model_and_the_same_scores(
    trained: str, log: Path, tmp_path: Path
) -> None:
    again = replay(tmp_path, log, training=True)
    kept = "select version, trained_at_ms, sha256, artifact, reason from models"
    assert rows(again, kept) == rows(trained, kept)
    assert scores(again) == scores(trained)
