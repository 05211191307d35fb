"""Windows against an oracle, cut anywhere, killed anywhere; and the details one by one."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.types import STATISTIC_INDEX, STATISTICS
from monitor.config import WindowSettings
from monitor.records import NUMBER_FIELDS
from monitor.series import SeriesInfo, series_name
from monitor.windows import (
    Added,
    AmendedWindow,
    ClosedWindows,
    ExpiredSeries,
    PartitionWindows,
    Step,
)
from tests.window_oracle import PARTITION, QUANTILES, Oracle, Record, columns, statistics

SETTINGS = WindowSettings(length_s=5, allowed_lateness_s=2, revision_horizon_s=12, empty_for_s=20)
LENGTH_MS = 5_000


class Store:
    """What the database would hold: the newest commit."""

    def __init__(self) -> None:
        self.next_offset: int | None = None
        self.restart_offset = 0
        self.close_offset: int | None = None
        self.watermark_ms: int | None = None
        self.series: dict[str, SeriesInfo] = {}
        self.sketches: dict[tuple[str, int], bytes | None] = {}
        self.steps: list[Any] = []
        self.counts = np.zeros(3, int)

    def commit(self, windows: PartitionWindows, drafted: list[Added], next_offset: int) -> None:
        for added in drafted:
            self.counts += (added.accepted, added.late, added.duplicates)
            for step in added.steps:
                self.steps.append(dump(step))
                self._apply(step)
        self.next_offset = next_offset
        self.restart_offset = windows.restart_offset(next_offset)
        self.close_offset, self.watermark_ms = windows.close_offset, windows.watermark_ms

    def _apply(self, step: Step) -> None:
        if isinstance(step, ClosedWindows):
            self.series |= {info.series: info for info in step.infos}
            for series, sketch in zip(step.batch.series, step.sketches, strict=True):
                self.sketches[series, step.batch.window_start_ms] = sketch
        elif isinstance(step, AmendedWindow):
            self.series[step.info.series] = step.info
            self.sketches[step.info.series, step.batch.window_start_ms] = step.sketch
        else:
            for info in step.infos:
                del self.series[info.series]

    def open(self, drafted: list[Added], window: WindowSettings = SETTINGS, **more: Any) -> PartitionWindows:
        def load(series: str, start_ms: int) -> bytes | None:
            for added in reversed(drafted):
                for step in reversed(added.steps):
                    if isinstance(step, ExpiredSeries) or step.batch.window_start_ms != start_ms:
                        continue
                    if series in step.batch.series:
                        if isinstance(step, AmendedWindow):
                            return step.sketch
                        return step.sketches[step.batch.series.index(series)]
            return self.sketches.get((series, start_ms))

        return PartitionWindows(
            window,
            ["model", "endpoint"],
            PARTITION,
            watermark_ms=self.watermark_ms,
            next_offset=self.next_offset,
            close_offset=self.close_offset,
            known=list(self.series.values()),
            load_sketch=load,
            **more,
        )


def dump(step: Step) -> Any:
    """A step as comparable bytes and values."""
    if isinstance(step, ExpiredSeries):
        return "expired", step.at_ms, step.infos
    batch = step.batch
    assert batch.new_version is not None
    metrics = {name: (mean.tobytes(), n.tobytes()) for name, (mean, n) in sorted(batch.metrics.items())}
    head = (batch.window_start_ms, batch.series, batch.values.tobytes(), batch.counts.tobytes(), metrics)
    head = (*head, batch.new_version.tolist())
    if isinstance(step, AmendedWindow):
        return "amended", *head, step.info, step.sketch, step.late_records, step.at_ms
    rows = range(len(batch))
    details = [(repr(step.slices(row)), step.exemplars(row)) for row in rows]
    return "closed", *head, step.infos, list(step.sketches), details


def run(records: Sequence[Record], cuts: Sequence[int] = (), **more: Any) -> Store:
    """One run without a restart, cut before the given records."""
    store, drafted = Store(), []
    windows = store.open(drafted, **more)
    bounds = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(records)), len(records)]
    for begin, end in itertools.pairwise(bounds):
        if begin < end:
            drafted.append(windows.add(columns(records[begin:end], begin)))
    drafted.append(windows.finish())
    store.commit(windows, drafted, len(records))
    return store


def run_killed(records: Sequence[Record], cuts: Sequence[tuple[int, str]]) -> Store:
    """At each cut: go on, commit, or die and begin again from the last commit."""
    store, drafted = Store(), []
    windows, at = store.open(drafted), 0
    for cut, what in [*((c, w) for c, w in sorted(cuts) if c < len(records)), (len(records), "go on")]:
        if at < cut:
            drafted.append(windows.add(columns(records[at:cut], at)))
            at = cut
        if what == "commit":
            store.commit(windows, drafted, at)
            drafted.clear()
        elif what == "die":
            drafted.clear()
            windows, at = store.open(drafted), store.restart_offset
    if at < len(records):
        drafted.append(windows.add(columns(records[at:], at)))
    drafted.append(windows.finish())
    store.commit(windows, drafted, len(records))
    return store


LEAPS_MS = (0, 0, 100, 700, 1_000, 2_500, 5_000, 5_000, 9_000, 60_000)
BEHIND_MS = (0, 0, 0, 1, 500, 2_000, 4_000, 7_000, 11_000, 15_000, 25_000)
record_parts = st.tuples(
    st.sampled_from(LEAPS_MS),
    st.sampled_from(BEHIND_MS),
    st.sampled_from(["a", "b", "c", "a/x"]),
    st.sampled_from([None, 1, 2, 3, 4]),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """Time goes on with jitter, sometimes in leaps; few series, few request ids; the rest at random."""
    rng = random.Random(draw(st.integers(0, 1 << 16)))
    now_ms, records = rng.randint(-20_000, 20_000), []
    for leap_ms, behind_ms, series, request_id in draw(st.lists(record_parts, max_size=30)):
        now_ms += leap_ms
        model, _, endpoint = series.partition("/")
        names = rng.sample(NUMBER_FIELDS, rng.randint(0, 4))
        records.append(
            Record(
                at_ms=now_ms - behind_ms,
                model=model,
                endpoint=endpoint or None,
                model_version=rng.choice([None, "1", "2", "3"]),
                tenant=rng.choice([None, "t", "u"]),
                error_type=rng.choice([None, "oom"]),
                finish_reason=rng.choice([None, "stop", "length"]),
                status=rng.choice([0, 200, 429, 503]),
                is_error=rng.randint(0, 1),
                correct=rng.randint(-1, 1),
                request_id=request_id,
                numbers={name: rng.choice([0.0, 1.0, rng.lognormvariate(3, 4)]) for name in names},
                metrics={rng.choice("pq"): rng.uniform(-5, 5)} if rng.random() < 0.3 else {},
            )
        )
    return records


@settings(max_examples=120, deadline=None)
@given(logs(), st.lists(st.integers(0, 30), max_size=6))
def test_every_step_is_what_the_oracle_says(records: list[Record], cuts: list[int]) -> None:
    oracle = Oracle(SETTINGS)
    for record in records:
        oracle.add(record)
    oracle.finish()
    windows = Store().open(drafted := [])
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(records)}), len(records)]
    for begin, end in itertools.pairwise(bounds):
        drafted.append(windows.add(columns(records[begin:end], begin)))
    drafted.append(windows.finish())
    steps = [step for added in drafted for step in added.steps]
    assert [kind_of(step) for step in steps] == [expected[0] for expected in oracle.steps]
    for step, expected in zip(steps, oracle.steps, strict=True):
        compare(step, expected)
    counts = [sum(getattr(a, name) for a in drafted) for name in ("accepted", "late", "duplicates")]
    assert counts == [oracle.accepted, oracle.late, oracle.duplicates]
    assert sum(counts) == len(records)


def kind_of(step: Step) -> str:
    return {ClosedWindows: "closed", AmendedWindow: "amended", ExpiredSeries: "expired"}[type(step)]


def compare(step: Step, expected: tuple[Any, ...]) -> None:
    if isinstance(step, ExpiredSeries):
        assert (step.at_ms, [info.series for info in step.infos]) == expected[1:]
        return
    assert step.batch.window_start_ms == expected[1]
    assert step.batch.series == [series for series, _, _ in expected[2]]
    if isinstance(step, AmendedWindow):
        assert step.late_records == expected[3]
    for row, (_, records, new_version) in enumerate(expected[2]):
        compare_row(step, row, records)
        assert step.batch.new_version is not None
        assert step.batch.new_version[row] == new_version
        if isinstance(step, ClosedWindows):
            assert (step.sketches[row] is None) == (not records)


def compare_row(step: ClosedWindows | AmendedWindow, row: int, records: list[Record]) -> None:
    batch = step.batch
    values, counts = batch.values[row], batch.counts[row]
    if not records:
        assert values[0] == 0 and np.isnan(values[1:]).all() and not counts.any()
        return
    wanted = statistics(records, batch.window_start_ms, batch.window_ms)
    for name in STATISTICS:
        value, count = values[STATISTIC_INDEX[name]], counts[STATISTIC_INDEX[name]]
        if name not in wanted:
            assert np.isnan(value) and count == 0, name
            continue
        assert count == wanted[name][1], name
        if name in QUANTILES:
            assert value == pytest.approx(wanted[name][0], rel=0.02), name
        elif name == "largest_gap_s":
            assert wanted[name][0] - 2 * LENGTH_MS / 256_000 <= value <= wanted[name][0] + 1e-9
        else:
            assert value == pytest.approx(wanted[name][0], rel=1e-9, abs=2e-6), name
    for name in "pq":
        own = [r.metrics[name] for r in records if name in r.metrics]
        mean, n = batch.metrics.get(name, (np.full(len(batch), np.nan), np.zeros(len(batch))))
        assert n[row] == len(own)
        assert mean[row] == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)


@settings(max_examples=80, deadline=None)
@given(logs(), st.lists(st.integers(0, 30), max_size=12))
def test_steps_do_not_depend_on_how_the_log_is_cut(records: list[Record], cuts: list[int]) -> None:
    whole, cut = run(records), run(records, cuts)
    assert cut.steps == whole.steps
    assert cut.counts.tolist() == whole.counts.tolist()
    assert cut.series == whole.series


moments = st.tuples(st.integers(0, 30), st.sampled_from(["go on", "commit", "commit", "die"]))


@settings(max_examples=250, deadline=None)
@given(logs(), st.lists(moments, max_size=14))
def test_a_killed_run_leaves_what_an_unkilled_one_leaves(
    records: list[Record], cuts: list[tuple[int, str]]
) -> None:
    whole, killed = run(records), run_killed(records, cuts)
    assert killed.steps == whole.steps
    assert killed.counts.tolist() == whole.counts.tolist()
    assert killed.series == whole.series


def one_by_one(records: Sequence[Record], **more: Any) -> list[Step]:
    windows = Store().open(drafted := [], **more)
    for offset, record in enumerate(records):
        drafted.append(windows.add(columns([record], offset)))
    drafted.append(windows.finish())
    return [step for added in drafted for step in added.steps]


def test_a_record_closes_a_window_only_at_its_end_plus_the_lateness() -> None:
    windows = Store().open([])
    for offset, (at_ms, closed) in enumerate([(0, 0), (4_999, 0), (6_999, 0), (7_000, 1)]):
        added = windows.add(columns([Record(at_ms)], offset))
        assert len(added.steps) == closed
    assert windows.close_offset == 3
    late = windows.add(columns([Record(4_999)], 4))
    assert (late.accepted, late.late) == (0, 1)


def test_a_redelivered_request_counts_once_and_changes_nothing() -> None:
    first = Record(0, request_id=7, numbers={"latency_ms": 10.0}, model_version="1")
    again = Record(1_000, request_id=7, numbers={"latency_ms": 999.0}, model_version="2", is_error=1)
    with_it, without = one_by_one([first, again]), one_by_one([first])
    assert [dump(step) for step in with_it] == [dump(step) for step in without]


def test_a_request_without_an_id_is_never_a_duplicate() -> None:
    added = Store().open([]).add(columns([Record(0), Record(0), Record(0)]))
    assert (added.accepted, added.duplicates) == (3, 0)


def test_a_silent_series_gets_empty_windows_until_it_expires_and_may_come_back() -> None:
    steps = one_by_one([Record(0), Record(100_000, model="other"), Record(101_000)])
    own = [(kind_of(s), s.batch.window_start_ms) for s in steps if not isinstance(s, ExpiredSeries)]
    assert own == [("closed", at) for at in (0, 5_000, 10_000, 15_000, 20_000, 100_000)]
    gone = [step for step in steps if isinstance(step, ExpiredSeries)]
    assert [(g.at_ms, g.infos[0].series) for g in gone] == [(25_000, "m/e")]


def test_idle_time_passes_only_forwards() -> None:
    windows = Store().open([])
    windows.add(columns([Record(1_000)]))
    assert windows.advance(500).steps == []
    assert windows.watermark_ms == 1_000
    (step,) = windows.advance(7_000).steps
    assert isinstance(step, ClosedWindows)
    assert (windows.watermark_ms, windows.close_offset, windows.live_series) == (7_000, 1, 1)


def test_an_idle_advance_survives_a_restart() -> None:
    store = Store()
    windows = store.open(drafted := [])
    drafted.append(windows.add(columns([Record(0), Record(6_000)])))
    drafted.append(windows.advance(12_500))
    store.commit(windows, drafted, 2)
    assert store.restart_offset == 2
    windows = store.open(drafted := [])
    added = windows.add(columns([Record(11_000), Record(21_000)], 2))
    assert (added.accepted, added.late) == (2, 0)
    assert [kind_of(step) for step in added.steps] == ["closed"]


def test_slices_and_exemplars_name_the_guilty() -> None:
    records = [
        Record(
            at_ms=i,
            tenant=f"t{i % 20}",
            region="eu" if i % 2 else None,
            request_id=i + 1,
            is_error=int(i in (30, 40)),
            numbers={"latency_ms": float(i)} if i % 20 else {},
        )
        for i in range(100)
    ]
    (step,) = one_by_one(records)
    assert isinstance(step, ClosedWindows)
    assert step.exemplars(0) == {
        "slow": ["r100", "r99", "r98", "r97", "r96"],
        "error": ["r31", "r41"],
        "any": ["r1", "r2", "r3", "r4", "r5"],
    }
    slices = step.slices(0)
    tenants = [s for s in slices if s.field == "tenant"]
    assert len(tenants) == 16 and {s.records for s in tenants} == {5}
    assert np.isnan(tenants[0].latency_mean_ms) and tenants[0].value == "t0" and tenants[0].errors == 1
    (eu,) = [s for s in slices if s.field == "region"]
    assert (eu.value, eu.records, eu.errors, eu.latency_mean_ms) == ("eu", 50, 0, 50.0)


def test_user_metrics_are_bounded_and_the_rest_is_counted() -> None:
    records = [Record(i, metrics={f"x{9 - i}": 1.0}) for i in range(10)]
    windows = Store().open([], max_metrics=4)
    windows.add(columns(records))
    (step,) = windows.finish().steps
    assert not isinstance(step, ExpiredSeries)
    assert sorted(step.batch.metrics) == ["x6", "x7", "x8", "x9"]
    assert windows.ignored_metrics == 6


def test_many_series_and_many_texts_are_forgotten_once_they_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("monitor.windows.TEXTS_KEPT", 8)
    records = [Record(i * 500, model=f"m{i}", tenant=f"t{i}", region="eu") for i in range(300)]
    steps = one_by_one(records)
    found = [
        (s.batch.series[row], s.slices(row)[0].value)
        for s in steps
        if isinstance(s, ClosedWindows)
        for row in range(len(s.batch))
        if s.batch.values[row, 0]
    ]
    assert sorted(found) == sorted((f"m{i}/e", f"t{i}") for i in range(300))
    windows = Store().open([])
    windows.add(columns(records))
    assert windows.live_series < 70


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["m", "chat"], "m/chat"),
        (["m", ""], "m"),
        (["org/m", "/v1/chat"], "org%2Fm//v1/chat"),
        (["50%", "a%b/c"], "50%25/a%b/c"),
        (["m", "", "eu"], "m//eu"),
        (["org/m"], "org/m"),
        (["", ""], ""),
    ],
)
def test_series_names(parts: list[str], name: str) -> None:
    assert series_name(parts) == name


def test_series_keep_their_raw_labels() -> None:
    (step,) = one_by_one([Record(0, model="org/m", endpoint="/v1")])
    assert isinstance(step, ClosedWindows)
    assert step.infos == [SeriesInfo("org%2Fm//v1", "org/m", "/v1", 0, 0, None)]


def test_a_foreign_series_state_is_refused() -> None:
    store = Store()
    store.series["m"] = SeriesInfo("m", "m", "", 0, 0, b"\x00what")
    with pytest.raises(ValueError, match="not a series state"):
        store.open([])


def test_types_come_without_the_compiler() -> None:
    code = "import sys, monitor.windows; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
