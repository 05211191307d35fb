"""Ready-made windows and NAB: what is read, what is written, causality, and NAB's scoring by hand."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.labelled import judge
from benchmarks.nab import PROFILES, Series, position_weight, probation_rows, row_weights, sweep
from benchmarks.vus import vus_pr
from detectors.lstm import LstmOptions
from detectors.readymade.evidence import excess, held_alarm, many, running_mean, whitened
from detectors.readymade.forecast import forecast_errors, linear_errors
from detectors.readymade.multivariate import MultivariateOptions, level_stream, score_windows
from detectors.readymade.univariate import (
    announce,
    nearest_at_hour,
    nearest_distance,
    score_series,
    surprise,
    trailing_mean,
)
from monitor.cli import main
from monitor.evaluate import EvaluationError, evaluate_nab, evaluate_windows

STANDARD = PROFILES[0]
TRAIN, TEST = 400, 200


def server(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """-> metrics [600, 4] in [0, 1] and labels: one broken stretch in the test part."""
    rng = np.random.default_rng(seed)
    t = np.arange(TRAIN + TEST)
    wave = 0.5 + 0.2 * np.sin(2 * np.pi * t / 50)
    values = wave[:, None] * [0.6, 0.8, 1.0, 0.5] + 0.01 * rng.normal(size=(len(t), 4))
    labels = np.zeros(len(t), int)
    labels[500:520] = 1
    values[500:520, :2] += 0.25
    return np.clip(values, 0, 1), labels


def write_server(path: Path, *, label: bool, metric: str = "cpu") -> None:
    values, labels = server()
    table = pd.DataFrame(values, columns=[metric, "memory", "net", "disk"])
    table.insert(0, "timestamp", np.arange(len(table)))
    table.insert(1, "split", np.where(np.arange(len(table)) < TRAIN, "train", "test"))
    if label:
        table.insert(2, "label", labels)
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two inputs (with and without labels) and what was written for them."""
    root = tmp_path_factory.mktemp("windows")
    write_server(root / "with" / "server.parquet", label=True)
    write_server(root / "without" / "server.parquet", label=False)
    for name in ("with", "without"):
        evaluate_windows(root / name, root / f"out-{name}")
    return root


def test_labels_change_nothing(scored: Path) -> None:
    first = (scored / "out-with" / "server.csv").read_bytes()
    assert first == (scored / "out-without" / "server.csv").read_bytes()


def test_the_scores_are_of_the_test_rows_in_order_and_find_the_fault(scored: Path) -> None:
    table = pd.read_csv(scored / "out-with" / "server.csv")
    assert list(table.columns) == ["timestamp", "score", "alarm"]
    assert list(table["timestamp"]) == list(range(TRAIN, TRAIN + TEST))
    assert table["score"].between(0, 1).all() and set(table["alarm"]) <= {0, 1}
    result = judge(scored / "with" / "server.parquet", scored / "out-with")
    assert result.vus > 0.5 and result.found == result.events == 1


def small(**changes: object) -> pd.DataFrame:
    """A table that can be scored if the training may be as short as this; `changes` replace its columns."""
    columns = {"timestamp": range(8), "split": ["train"] * 6 + ["test"] * 2, "cpu": [0.1, 0.2] * 4}
    return pd.DataFrame({name: value for name, value in (columns | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (small(split=None), "needs the columns timestamp and split; it has timestamp, cpu"),
        (small(split=["later"] * 8), "split is 'later'; it must be train or test"),
        (small(split=["train"] * 7 + [None]), "must be train or test in every row"),
        (small(split=["test"] * 8), "it needs rows of train as well"),
        (small(split=["train"] * 8), "it needs rows of test as well"),
        (small().head(1), "it needs rows of test as well"),
        (small(cpu=[0.1] * 7 + ["high"]), "column cpu holds 'high', which is no number; take the column out"),
        (small(cpu=pd.date_range("2026-01-01", periods=8)), "column cpu holds '2026-01-01"),
        (small(cpu=None, label=[0] * 8), "has no metrics; its columns are timestamp, split, label"),
        (small(), "6 training rows of 1 metrics are too few; at least 50"),
        (small(timestamp=[0, 1, 2, 4, 3, 5, 6, 7]), r"row 5 \(3\) is earlier than the row before it"),
        (small(timestamp=[*range(7), None]), "row 8 has no timestamp"),
        (small(timestamp=["soon"] * 8), "timestamp 'soon' is neither a number nor a time"),
        (small(timestamp=[f"2026-01-0{9 - i} 10:00" for i in range(8)]), "row 2 .* sort the rows"),
    ],
)  # fmt: skip
def test_a_bad_table_is_reported_with_the_way_to_mend_it(
    tmp_path: Path, table: pd.DataFrame, said: str
) -> None:
    if "cpu" in table and table["cpu"].dtype == object:
        table["cpu"] = table["cpu"].astype(str)  # parquet has no columns of mixed types
    table.to_parquet(tmp_path / "a.parquet")
    (done,) = evaluate_windows(tmp_path, tmp_path / "out")
    assert re.search(said, done.error) and "a.parquet" in done.error and done.rows == 0
    assert not (tmp_path / "out").exists()


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in" / "data" / "kind"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("timestamp,value\n2014-04-01 00:00:00,1\n")
    (folder / "b.csv").write_text("timestamp,value\n2014-04-01 00:00:00,much\n")
    (folder / "c.csv").write_text("time,value\n2014-04-01 00:00:00,1\n")
    (folder / "d.csv").write_text("")
    (folder / "e.csv").write_text("timestamp,value\n")
    (folder / "f.csv").write_text("timestamp,value\n2014-04-01 00:00:00,\n2014-04-01 00:05:00,2\n")
    (tmp_path / "in" / "data" / "stray.parquet").write_bytes(b"not parquet")
    done = {one.file: one for one in evaluate_nab(tmp_path / "in", tmp_path / "out")}
    assert [name for name, one in done.items() if not one.error] == ["kind/a.csv", "kind/f.csv"]
    assert "'much', which is no number" in done["kind/b.csv"].error
    assert "it has time, value" in done["kind/c.csv"].error
    assert "not readable as CSV" in done["kind/d.csv"].error and "no rows" in done["kind/e.csv"].error
    assert (tmp_path / "out" / "kind" / "f.csv").is_file()
    with pytest.raises(SystemExit, match="1"):
        command("nab", str(tmp_path / "in"), "--scores", str(tmp_path / "again"), "--json")
    told = capsys.readouterr()
    assert [one["file"] for one in json.loads(told.out) if not one["error"]] == ["kind/a.csv", "kind/f.csv"]
    assert "4 of 6 files" in told.err and "b.csv: column value holds 'much'" in told.err
    (one,) = evaluate_windows(tmp_path / "in" / "data", tmp_path / "out")
    assert "stray.parquet: not readable as parquet" in one.error


def command(*arguments: str) -> None:
    """`inferwatch evaluate ...` in this process; raises SystemExit with its code."""
    with mock.patch.object(sys, "argv", ["inferwatch", "evaluate", *arguments]):
        main()


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no \*.parquet"):
        evaluate_windows(tmp_path, tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"no \*\.csv"):
        evaluate_nab(tmp_path / "missing", tmp_path / "out")


def test_the_budget_of_the_config_is_heeded_and_a_database_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in" / "data" / "kind"
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).exponential(size=3_000)
    lines = [f"2014-04-01 {i // 60:02}:{i % 60:02},{value:.6f}" for i, value in enumerate(values)]
    (folder / "a.csv").write_text("timestamp,value\n" + "\n".join(lines))
    alarms = []
    for budget in (0.01, 1, 50):
        (tmp_path / "c.toml").write_text(f"[detection]\nfalse_alarms_per_week = {budget}\n")
        with pytest.raises(SystemExit, match="0"):
            command("nab", str(tmp_path / "in"), "--scores", str(tmp_path / "out"), "--config",
                    str(tmp_path / "c.toml"), "--json")  # fmt: skip
        alarms.append(json.loads(capsys.readouterr().out)[0]["alarms"])
    assert alarms[0] < alarms[1] < alarms[2]
    (tmp_path / "c.toml").write_text("[detection]\nfalse_alarms_per_week = -1\n")
    for code, more in (
        ("78", ("--config", str(tmp_path / "c.toml"))),
        ("2", ("--database", "sqlite:///x.db")),
    ):
        with pytest.raises(SystemExit, match=code):
            command("windows", str(tmp_path / "in"), "--scores", str(tmp_path / "out"), *more)
    assert "--database" in capsys.readouterr().err


def test_forecasts_keep_their_judgement_when_a_metric_drifts_away() -> None:
    values, _ = server(2)
    values[:, 0] = np.where(np.arange(len(values)) < TRAIN, values[:, 0], values[:, 0] + 2.0)  # far outside
    values[550, 0] += 0.4
    errors = forecast_errors(values, TRAIN, 7)[:, 0]
    assert np.median(np.abs(errors[525:545])) < 0.1  # it stands 2 above every training row
    assert errors[550] > 0.3
    np.testing.assert_array_equal(forecast_errors(values[:530], TRAIN, 7)[:, 0], errors[:530])
    flat = forecast_errors(np.r_[np.full(100, 0.5), 0.5, 0.7, 0.7][:, None], 100, 7)
    np.testing.assert_allclose(flat[100:, 0], [0.0, 0.2, 0.2 / 3], atol=1e-9)


def test_trees_learn_what_is_bent() -> None:
    """The step that follows another is its size, whatever its sign: no line says so."""
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=0.1, size=3_000) * (np.arange(3_000) % 3 == 0)
    values = np.column_stack([steps, 0.5 + np.abs(np.r_[0.0, steps[:-1]])])
    target = values[:, 1] - running_mean(values, 2.0)[np.r_[0, :2_999], 1]
    errors = forecast_errors(values, 2_000, 7)[2_000:, 1]
    assert np.std(errors) < 0.3 * np.std(target[2_000:])


def test_rows_fitted_to_err_as_much_as_others() -> None:
    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(400, 40)), rng.normal(size=(400, 3))
    errors = linear_errors(inputs, target, 60)
    assert np.std(errors[:60]) == pytest.approx(np.std(errors[60:]), rel=0.15)
    without = linear_errors(np.r_[inputs[1:60], inputs[:1]], np.r_[target[1:60], target[:1]], 59)[-1]
    np.testing.assert_allclose(errors[0], without, atol=0.1)


def test_metrics_that_err_together_count_once_and_breaking_company_counts_more() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2_000, 3))
    errors = np.column_stack([own[:, 0], own[:, 0], own[:, 0], own[:, 1], np.zeros(2_000)])
    errors[:, :3] += 0.1 * own[:, [2]] * [1.0, -1.0, 0.0]
    errors[1_500:1_503] = [[4, 4, 4, 0, 0], [4, -4, 4, 0, 0], [0, 0, 0, 4, 0]]
    out = many(whitened(errors, 1_000))
    assert out[1_501] > 1.3 * out[1_500]  # the second metric leaves the others
    assert many(errors)[1_500] > 2 * many(errors)[1_502] and out[1_500] < 2 * out[1_502]
    order = [3, 1, 4, 0, 2]
    np.testing.assert_allclose(many(whitened(errors[:, order], 1_000)), out, rtol=1e-9)
    np.testing.assert_array_equal(whitened(errors[:1_234], 1_000), whitened(errors, 1_000)[:1_234])
    assert not whitened(np.zeros((60, 2)), 50).any()


def test_neither_a_lasting_drift_nor_the_way_back_counts_as_distance() -> None:
    rng = np.random.default_rng(0)
    values = 0.3 + 0.02 * rng.normal(size=(6_000, 3))
    values[2_500:2_900] += 0.5  # an anomaly
    values[4_000:] += 0.5  # a new normal
    level = level_stream(values, 2_000)
    calm, back = level[2_100:2_500].mean(), level[2_900:3_300].mean()
    assert level[2_500:2_600].mean() > 2 * calm and back < calm
    assert level[4_000:4_100].mean() > 2 * calm > 2 * level[5_800:].mean()


QUICK = MultivariateOptions(lstm=LstmOptions(hidden=8, epochs=2))


def test_no_row_knows_the_future_and_gaps_are_survived() -> None:
    values, _ = server(1)
    values[450:460, 1] = np.nan
    values[:, 3] = 0.5  # a metric that never moves
    score, alarm = score_windows(values, TRAIN, QUICK)
    cut_score, cut_alarm = score_windows(values[:530], TRAIN, QUICK)
    np.testing.assert_array_equal(score[:130], cut_score)
    np.testing.assert_array_equal(alarm[:130], cut_alarm)
    assert np.isfinite(score).all()
    with pytest.raises(ValueError, match="too few"):
        score_windows(values, 20, QUICK)


def test_alarms_hold_and_let_go() -> None:
    over = np.full(40, -1.0)
    over[[5, 9]] = 3.0
    alarm = held_alarm(over, 2.0, 0.0, 5, 100)
    assert list(np.flatnonzero(alarm)) == list(range(5, 15))
    assert held_alarm(np.r_[3.0, np.full(50, 1.0)], 2.0, 0.0, 5, 10).sum() == 11


def test_excess_counts_in_mean_excesses_and_follows_drift() -> None:
    rng = np.random.default_rng(0)
    stream = rng.exponential(size=6_000) + 2.0
    over = excess(stream, 2_000)
    for level in (0.5, 1.0, 2.0):
        expected = 0.02 * math.exp(-level)
        assert np.mean(over[2_000:] > level) == pytest.approx(expected, rel=0.5)
    moved = excess(stream + np.linspace(0, 3, 6_000), 2_000)
    assert np.mean(moved[4_000:] > 0) < 0.08


def test_running_mean_is_that_of_the_rows_so_far() -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    expected = pd.DataFrame(values).ewm(span=7).mean().to_numpy()
    np.testing.assert_allclose(running_mean(values, 7.0), expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_nearest_distance_is_the_nearest_of_all_before(numbers: list[float]) -> None:
    values = np.array(numbers)
    expected = [0.0] + [float(np.abs(values[:t] - values[t]).min()) for t in range(1, len(values))]
    np.testing.assert_array_equal(nearest_distance(values), expected)


def test_a_distance_counts_beyond_the_gaps_behind_the_nearest() -> None:
    values = np.array([0.0, 1.0, 5.0, 9.0, 4.0, -2.0])
    # 9 lies 4 above 5; behind it 1 and 0, on average 2.5 apart: half of that is taken off. 4 lies 1 below 5,
    # behind it 9 alone, 4 away. -2 lies 2 below 0, behind it 1 and 4, on average 2 apart
    assert list(nearest_distance(values, 0.5)[3:]) == [4 - 1.25, 0.0, 2 - 1.0]
    assert list(nearest_distance(values)[3:]) == [4.0, 1.0, 2.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 23)), max_size=60), st.integers(1, 9))
def test_nearest_of_the_hour_leaves_out_the_newest(rows: list[tuple[float, int]], delay: int) -> None:
    values, hour = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], np.int64)
    for t, found in enumerate(nearest_at_hour(values, hour, delay)):
        apart = [(hour[t] - hour[s]) % 24 for s in range(t - delay + 1)]
        near = [abs(values[t] - values[s]) for s, hours in enumerate(apart) if hours in (23, 0, 1)]
        assert found == min(near, default=0.0)


def test_mean_of_the_newest_values() -> None:
    assert list(trailing_mean(np.array([4.0, 2.0, 0.0, 7.0]), 2)) == [4.0, 3.0, 1.0, 3.5]


def test_surprise_counts_powers_of_ten() -> None:
    evidence = np.r_[np.random.default_rng(0).exponential(size=5_000), 0.5, 2.3, 9.2]
    found = surprise(evidence, 50, 0.95)[-3:]
    assert found[0] == pytest.approx(0.22, abs=0.05)
    assert found[1] == pytest.approx(1.0, abs=0.1)
    assert found[2] == pytest.approx(4.0, abs=0.5)


def test_an_event_is_announced_once_until_it_fades() -> None:
    kept = announce(np.array([0, 3, 2, 2.9, 4, 0, 0, 0, 0, 3.0]), 2, 0.7)
    assert list(kept) == [0, 3, 0, 0, 4, 0, 0, 0, 0, 3.0]


def test_univariate_scores_are_causal_and_survive_gaps() -> None:
    rng = np.random.default_rng(3)
    values = np.sin(np.arange(800) / 10) + 0.05 * rng.normal(size=800)
    values[600] = 4.0
    values[50:55] = np.nan
    score, alarm = score_series(values, 120)
    part, _ = score_series(values[:700], 120)
    np.testing.assert_array_equal(score[:700], part)
    assert int(np.argmax(score)) == 600 and alarm[600] and (score[:120] == 0).all()
    assert ((score >= 0) & (score < 1)).all()


def test_a_quiet_day_is_told_by_the_time_of_day() -> None:
    """Values that were seen every night, at noon: only the rows' times tell."""
    rng = np.random.default_rng(4)
    seconds = 300.0 * np.arange(4_000)
    by_day = (seconds % 86_400) // 3_600
    values = np.where((by_day >= 8) & (by_day < 18), 80.0, 20.0) + rng.normal(size=4_000)
    quiet = slice(9 * 288 + 96, 9 * 288 + 216)
    values[quiet] = 20.0 + rng.normal(size=120)
    score, _ = score_series(values, 600, seconds=seconds)
    others = np.r_[score[600 : quiet.start], score[quiet.stop + 24 :]]
    assert score[quiet].max() > others.max()
    without, _ = score_series(values, 600)
    assert without[quiet].max() < score[quiet].max() / 2
    part, _ = score_series(values[: quiet.start + 60], 600, seconds=seconds[: quiet.start + 60])
    np.testing.assert_array_equal(score[: quiet.start + 60], part)
    lost = np.where(np.arange(4_000) % 7 == 3, np.nan, seconds)
    told, _ = score_series(values, 600, seconds=lost)
    assert told[quiet].max() == pytest.approx(score[quiet].max(), abs=0.05)
    for useless in (np.full(4_000, np.nan), np.zeros(4_000), seconds * 288):
        np.testing.assert_array_equal(score_series(values, 600, seconds=useless)[0], without)


def test_nab_files_are_written_row_by_row(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "data" / "kind"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(
        "timestamp,value\n" + "".join(f"2014-04-01 00:{i % 60:02}:00,{i % 7}\n" for i in range(100))
    )
    (done,) = evaluate_nab(tmp_path / "in", tmp_path / "out")
    lines = (tmp_path / "out" / "kind" / "a.csv").read_text().splitlines()
    assert (done.file, done.rows, len(lines)) == ("kind/a.csv", 100, 101)
    assert lines[1] == "2014-04-01 00:00:00,0,0"


def test_nab_timestamps_that_are_no_times_tell_no_hour(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    times = pd.date_range("2014-04-01", periods=600, freq="15min")
    values = 10.0 * (times.hour >= 12) + rng.normal(size=600)
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    stamps = {"times": times.astype(str), "rows": [f"row {i}" for i in range(600)], "none": [""] * 600}
    for name, stamp in stamps.items():
        frame = pd.DataFrame({"timestamp": stamp, "value": values})
        frame.to_csv(folder / f"{name}.csv", index=False)
    assert [one.error for one in evaluate_nab(tmp_path / "in", tmp_path / "out")] == ["", "", ""]
    found = {name: pd.read_csv(tmp_path / "out" / f"{name}.csv")["score"].to_numpy() for name in stamps}
    np.testing.assert_array_equal(found["rows"], found["none"])
    assert (found["rows"] != found["times"]).any()


def test_the_weight_of_a_position() -> None:
    assert position_weight(-1.0) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert position_weight(0.0) == 0.0
    assert position_weight(1.0) == pytest.approx(-0.98661, abs=1e-5)
    assert position_weight(3.1) == -1.0


def test_row_weights_by_hand() -> None:
    weight, member = row_weights(100, [(40, 49), (70, 79)])
    assert probation_rows(100) == 15 and (weight[:15] == 0).all()
    assert weight[20] == -1.0  # before any window
    assert weight[40] == pytest.approx(1.0)  # earliest detection
    assert weight[49] == pytest.approx(position_weight(-0.1) / position_weight(-1.0))
    assert weight[58] == pytest.approx(position_weight(1.0))  # 9 rows behind a window of 10
    assert weight[80] == pytest.approx(position_weight(1 / 9))
    assert list(np.flatnonzero(member == 1)) == list(range(70, 80))


def scored_series(hits: dict[int, float], windows: list[tuple[int, int]], rows: int = 1_000) -> Series:
    score = np.zeros(rows)
    for row, value in hits.items():
        score[row] = value
    return Series("a", score, windows)


def test_nab_scores_by_hand() -> None:
    windows = [(400, 499)]
    assert sweep([scored_series({400: 0.9}, windows)], STANDARD) == (pytest.approx(100.0), 0.9)
    silent, _ = sweep([scored_series({}, windows)], STANDARD)
    assert silent == 0.0
    late = position_weight(-50 / 100) / position_weight(-1.0)
    score, _ = sweep([scored_series({450: 0.9}, windows)], STANDARD)
    assert score == pytest.approx(100 * (late + 1) / 2)
    # two detections in the window count once, the earlier one; a false alarm before it costs 0.11
    score, threshold = sweep([scored_series({300: 0.9, 400: 0.9, 450: 0.9}, windows)], STANDARD)
    assert score == pytest.approx(100 * (1 - 0.11 + 1) / 2) and threshold == 0.9
    # the threshold that leaves the false alarm out is found
    score, threshold = sweep([scored_series({300: 0.5, 400: 0.9}, windows)], STANDARD)
    assert (score, threshold) == (pytest.approx(100.0), 0.9)


def test_nab_profiles_and_one_threshold_for_all_files() -> None:
    both = [
        scored_series({400: 0.9}, [(400, 499)]),
        scored_series({100: 0.95, 300: 0.8, 500: 0.4}, [(500, 599)]),
    ]
    score, threshold = sweep(both, STANDARD)  # 100 is inside the probation
    assert threshold == 0.4 and score == pytest.approx(100 * (2 - 0.11 + 2) / 4)
    assert sweep(both, PROFILES[1])[0] == pytest.approx(100 * (2 - 0.22 + 2) / 4)
    assert sweep(both, PROFILES[2])[0] == pytest.approx(100 * (2 - 0.11 + 4) / 6)


def test_vus_pr_knows_a_perfect_and_a_blind_score() -> None:
    labels = np.zeros(2_000, int)
    labels[500:540] = labels[1_200:1_260] = 1
    rng = np.random.default_rng(0)
    assert vus_pr(labels, labels + 0.1 * rng.random(2_000), 0) > 0.95
    assert vus_pr(labels, rng.random(2_000), 100) < 0.2
    better = vus_pr(labels, labels + rng.random(2_000), 50)
    assert better > vus_pr(labels, 0.3 * labels + rng.random(2_000), 50)
