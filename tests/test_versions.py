"""A new model version against the one before it: how often it is wronged, how often found out, and the way
of a verdict through the pipeline."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from detectors.paired import Paired, Records
from detectors.placebo import before_after
from detectors.types import STATISTIC_INDEX, STATISTICS, Float64
from detectors.versions import Difference, findings, two_sided_p
from monitor.jobs import unpacked
from monitor.rollouts import FORMAT, Rollouts
from storage.engine import connect
from storage.models import ModelRegistry
from tests.daemons import rows
from tests.test_pipeline import Killed, ledger_for, pipeline_for, run_to_end

MINUTE_MS = 60_000
START_MS = 1_772_409_600_000
HOURS = 18
DEPLOYED_MIN = 16 * 60


def records(rng: np.random.Generator, n: int, *, slower: float = 1.0, errors: float = 0.01) -> Records:
    """Latency follows the length of the output."""
    output = np.floor(rng.lognormal(5, 0.8, n))
    return Records(
        latency_ms=slower * (50 + 10 * output) * rng.lognormal(0, 0.4, n),
        ttft_ms=slower * rng.lognormal(5, 0.4, n),
        input_tokens=np.floor(rng.lognormal(6, 1, n)),
        output_tokens=output,
        confidence=np.clip(rng.normal(0.8, 0.1, n), 0, 1),
        is_error=(rng.random(n) < errors).astype(np.int8),
        truncated=(rng.random(n) < 0.1).astype(np.int8),
        correct=np.full(n, -1, np.int8),
    )


def paired(rng: np.random.Generator, windows: int, **changes: float) -> list[Difference]:
    """Both versions side by side under a load that goes up and down for both."""
    evidence = Paired()
    for _ in range(windows):
        load = rng.lognormal(0, 0.5)
        old = records(rng, rng.poisson(20), slower=load)
        new = records(
            rng,
            rng.poisson(5),
            slower=load * changes.get("slower", 1.0),
            errors=changes.get("errors", 0.01),
        )
        evidence.add(old, new)
    return findings(evidence.differences())


def said(found: list[Difference]) -> dict[str, str]:
    return {d.metric: d.says for d in found if d.says != "alike"}


def test_a_version_that_is_alike_is_hardly_ever_called_different_side_by_side() -> None:
    rng = np.random.default_rng(1)
    wronged = sum(bool(said(paired(rng, 10))) for _ in range(80))
    assert wronged <= 1  # 0.005 over four looks: a tenth of a case is expected at one look


def test_a_slower_and_a_failing_version_are_found_side_by_side() -> None:
    rng = np.random.default_rng(2)
    slow = [said(paired(rng, 20, slower=1.6)) for _ in range(10)]
    assert np.mean([found.get("latency_given_tokens") == "worse" for found in slow]) >= 0.9
    failing = [said(paired(rng, 40, errors=0.2)) for _ in range(10)]
    assert np.mean([found.get("error_rate") == "worse" for found in failing]) >= 0.9
    assert all("latency_given_tokens" not in found for found in failing)


def test_longer_answers_are_different_and_not_slower() -> None:
    rng = np.random.default_rng(3)
    evidence = Paired()
    for _ in range(60):
        old, longer = records(rng, 30), records(rng, 30)
        grown = 1.5 * longer.output_tokens
        noise = longer.latency_ms / (50 + 10 * longer.output_tokens)
        evidence.add(
            old,
            Records(
                latency_ms=(50 + 10 * grown) * noise,
                ttft_ms=longer.ttft_ms,
                input_tokens=longer.input_tokens,
                output_tokens=grown,
                confidence=longer.confidence,
                is_error=longer.is_error,
                truncated=longer.truncated,
                correct=longer.correct,
            ),
        )
    found = {d.metric: d for d in findings(evidence.differences())}
    assert found["output_tokens_mean"].says == "different"
    assert found["latency_p95_ms"].says == "worse"
    assert found["latency_given_tokens"].says == "alike"


def test_evidence_is_the_same_after_it_was_stored() -> None:
    rng = np.random.default_rng(4)
    one = Paired()
    for _ in range(10):
        one.add(records(rng, 20), records(rng, 10))
    other = Paired.from_arrays(one.to_arrays())
    old, new = records(rng, 20), records(rng, 10)
    one.add(old, new)
    other.add(old, new)
    assert one.differences() == other.differences() != []
    with pytest.raises(ValueError, match="paired"):
        Paired.from_arrays([b""])


def course(rng: np.random.Generator, windows: int) -> tuple[Float64, Float64]:
    """A moody series: its latency and its failures wander for hours."""
    values, counts = np.full((windows, len(STATISTICS)), np.nan), np.zeros((windows, len(STATISTICS)))
    n = rng.poisson(12, windows).astype(float)
    mood = np.convolve(rng.normal(0, 0.1, windows + 59), np.ones(60) / 8, mode="valid")
    failing = np.clip(0.02 * np.exp(2 * mood), 0, 1)
    for name, value in (
        ("request_count", n),
        ("latency_log_mean", 6 + mood + rng.normal(0, 1, windows) * 0.5 / np.sqrt(np.maximum(n, 1))),
        ("latency_p95_ms", np.exp(7 + mood + rng.normal(0, 0.3, windows))),
        ("error_rate", rng.binomial(n.astype(int), failing) / np.maximum(n, 1)),
    ):
        values[:, STATISTIC_INDEX[name]] = np.where((n > 0) | (name == "request_count"), value, np.nan)
        counts[:, STATISTIC_INDEX[name]] = n
    return values, counts


def compared(values: Float64, counts: Float64, at: int, length: int) -> list[Difference]:
    start_ms = np.arange(len(values), dtype=np.int64) * MINUTE_MS
    at_ms = at * MINUTE_MS
    found = before_after(
        *(start_ms, values, counts, np.ones(len(values), np.bool_)),
        old_until_ms=at_ms,
        new_from_ms=at_ms,
        new_until_ms=at_ms + length * MINUTE_MS,
    )
    return findings(found)


def test_a_moody_series_is_no_worse_for_a_new_version() -> None:
    rng = np.random.default_rng(5)
    wronged = found = 0
    for _ in range(60):
        values, counts = course(rng, 26 * 60)
        for length in (10, 30):
            result = compared(values, counts, 24 * 60, length)
            found += bool(result)
            wronged += bool(said(result))
    assert found == 120
    assert wronged <= 2


def test_a_change_beyond_the_moods_is_found_before_and_after() -> None:
    rng = np.random.default_rng(6)
    hits = []
    for _ in range(15):
        values, counts = course(rng, 26 * 60)
        values[24 * 60 :, STATISTIC_INDEX["latency_log_mean"]] += np.log(1.8)
        hits.append(said(compared(values, counts, 24 * 60, 30)).get("latency_given_tokens") == "worse")
    assert np.mean(hits) >= 0.9


def test_few_requests_and_a_short_past_say_nothing() -> None:
    values, counts = course(np.random.default_rng(7), 26 * 60)
    assert compared(values[-130:], counts[-130:], 100, 30) == []  # no past to say what is usual
    values[24 * 60 :, 0], counts[24 * 60 :] = 0, counts[24 * 60 :] * 0.02
    assert compared(values, counts, 24 * 60, 10) == []  # two requests in ten minutes


def test_p_of_a_normal_value() -> None:
    assert two_sided_p(1.96, 1e9) == pytest.approx(0.05, rel=1e-3)
    assert two_sided_p(2.0, 10) == pytest.approx(0.0734, rel=0.02)
    assert two_sided_p(float("nan"), 10) == 1.0


# --------------------------------------------------------------------------- through the pipeline


def log() -> Iterator[dict[str, Any]]:
    """Three services deploy v2 at once: `bad` is slower and fails, `good` is the same, `canary` gives it a
    third of its traffic, where it fails."""
    rng = np.random.default_rng(8)
    for minute in range(HOURS * 60):
        for endpoint in ("bad", "good", "canary"):
            for i in range(rng.poisson(5 if endpoint != "canary" else 9)):
                deployed = minute >= DEPLOYED_MIN
                new = deployed and (endpoint != "canary" or rng.random() < 0.33)
                broken = new and endpoint != "good"
                tokens = int(rng.lognormal(4, 0.6)) + 1
                slow = 4.0 if broken and endpoint == "bad" else 1.0
                failed = rng.random() < (0.2 if broken else 0.01)
                at_ms = START_MS + minute * MINUTE_MS + int(rng.integers(0, MINUTE_MS))
                yield {
                    "timestamp": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
                    "request_id": f"{endpoint}-{minute}-{i}",
                    "model": "m",
                    "endpoint": endpoint,
                    "model_version": "v2" if new else "v1",
                    "status": 500 if failed else 200,
                    "latency_ms": round(slow * (80 + 20 * tokens) * rng.lognormal(0, 0.15), 2),
                    "output_tokens": tokens,
                }


MESSAGES = [json.dumps(record).encode() for record in log()]
DEPLOYMENTS = "select * from deployment_history order by series"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('versions') / 'whole.db'}"
    run_to_end(*pipeline_for(ledger_for(url), MESSAGES, batch=2_000))
    return url


def test_each_deployment_gets_the_verdict_it_deserves(whole: str) -> None:
    found = {row["series"]: row for row in rows(whole, DEPLOYMENTS)}
    assert {name: row["verdict"] for name, row in found.items()} == {
        "m/bad": "worse",
        "m/good": "alike",
        "m/canary": "worse",
    }
    assert {row["previous_version"] for row in found.values()} == {"v1"}
    assert found["m/bad"]["basis"] == found["m/good"]["basis"] == "before_and_after"
    assert found["m/canary"]["basis"] == "same_windows"
    bad = {d["metric"]: d for d in json.loads(found["m/bad"]["differences"])}
    assert bad["latency_given_tokens"]["says"] == "worse"
    assert 3 < bad["latency_given_tokens"]["new"] < 5
    canary = {d["metric"]: d for d in json.loads(found["m/canary"]["differences"])}
    assert canary["error_rate"]["says"] == "worse"
    assert canary["latency_given_tokens"]["says"] == "alike"
    assert found["m/good"]["summary"].startswith("v2 against v1 after 2 h, ")
    assert found["m/good"]["summary"].endswith("no difference found")


def test_the_incident_tells_of_the_version_and_a_good_one_fires_nothing(whole: str) -> None:
    statement = "select * from alerts where window_end_ms > {} order by window_start_ms"
    alerts = rows(whole, statement.format(START_MS + DEPLOYED_MIN * MINUTE_MS))
    assert any("v2 against v1" in row["summary"] for row in alerts if row["series"] == "m/bad")
    events = rows(whole, "select * from incident_event_history where kind = 'version_compared'")
    told = [event["reason"] for event in events]
    assert any(text.startswith("m/bad: v2 against v1 after 10 min") for text in told)
    assert not any(text.startswith("m/good") for text in told)


def test_verdicts_do_not_depend_on_where_the_process_died(whole: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'dying.db'}"
    for commits, batch in ((3, 700), (9, 1_300), (2, 400)):
        ledger = ledger_for(url)
        ledger.commits_left, ledger.after = commits, batch == 1_300
        with contextlib.suppress(Killed):
            run_to_end(*pipeline_for(ledger, MESSAGES, batch=batch))
        ledger.engine.dispose()
    run_to_end(*pipeline_for(ledger_for(url), MESSAGES, batch=900))
    assert rows(url, DEPLOYMENTS) == rows(whole, DEPLOYMENTS)
    events = "select * from incident_event_history order by at, kind"
    assert rows(url, events) == rows(whole, events)


def test_windows_that_cannot_be_read_are_as_if_missing_and_stop_no_partition(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'spoiled.db'}"
    ledger = ledger_for(url)
    pipeline, clock = pipeline_for(ledger, MESSAGES, batch=500)
    newest = "select coalesce(max(window_start_ms), 0) as ms from windows"
    while rows(url, newest)[0]["ms"] < START_MS + (DEPLOYED_MIN - 60) * MINUTE_MS:
        assert pipeline.turn(0.0)
        clock.advance(1_100)
    ledger.engine.dispose()
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        for remainder, spoiled in ((0, b""), (1, b"\x09\x00\x00"), (2, b"\x01\xff\xff1234")):
            spoil = "update windows set statistics = ? where window_start_ms / 60000 % 40 = ?"
            connection.execute(spoil, (spoiled, remainder))
        connection.commit()
    with capture_logs() as said:
        run_to_end(*pipeline_for(ledger_for(url), MESSAGES, batch=2_000))
    assert {line["series"] for line in said if line["event"] == "windows_lost"} >= {"m/bad", "m/good"}
    found = {row["series"]: row["verdict"] for row in rows(url, DEPLOYMENTS)}
    assert (found["m/bad"], found["m/canary"]) == ("worse", "worse")
    every = {"since_ms": 0, "until_ms": 1 << 60, "max_windows": 10_000, "least_windows": 1}
    history = ModelRegistry(connect(url)).training_set(**every)
    trained = {name: unpacked(name, windows) for name, windows in history.series.items()}
    for name, windows in history.series.items():
        assert 0.9 < len(trained[name].window_start_ms) / len(windows.window_start_ms) < 0.95


def test_the_command_shows_them(whole: str) -> None:
    asked = [sys.executable, "-m", "monitor.cli", "deployments", "--database", whole, "--json"]
    done = subprocess.run([*asked, "--verdict", "worse"], capture_output=True, check=True, text=True)
    assert {row["series"] for row in json.loads(done.stdout)} == {"m/bad", "m/canary"}


def test_a_trial_that_cannot_be_read_is_refused() -> None:
    trials = Rollouts(lambda *_: [])
    with pytest.raises(ValueError, match="trial"):
        trials.restore("a", b"\xff")
    assert FORMAT == 1
    assert trials.dump("a") is None
