"""The generator of logs: real shapes in, honest faults on top, and the same bytes for the same seed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fold import Windows, fold
from detectors.types import FEATURES, STATISTIC_INDEX
from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.draft import publish
from monitor.errors import InferwatchError
from monitor.fault_kinds import KINDS
from monitor.fault_plan import guilty_features, sample_faults, usable_kinds
from monitor.generate import draft_hour, generate
from monitor.lines import encode_lines
from monitor.record_faults import Fault, Touched
from monitor.records import NUMBER_FIELDS, TEXT_FIELDS, Decoder, RecordColumns
from monitor.simulate import SimulateOptions, make_services, parse_fault, simulate
from monitor.sources.base import Partition, RawBatch
from monitor.windows import ClosedWindows, PartitionWindows
from monitor.workload import (
    ANCHOR_MS,
    BIN_S,
    DAY_MS,
    HOUR_MS,
    Profile,
    UserMetric,
    load_workloads,
    sample_profile,
)

NOON_MS = ANCHOR_MS + 36 * HOUR_MS


def service(seed: int = 3, *, client: str = "servegen-48", rate_per_s: float = 1.0) -> Profile:
    """A complete, steady LLM service that every kind of fault can hit."""
    drawn = sample_profile(
        np.random.default_rng(seed),
        model="m",
        endpoint="e",
        clients=(client,),
        rate_per_s=rate_per_s,
        kind="llm",
        complete=True,
    )
    return replace(
        drawn,
        metrics=(UserMetric("quality", 5.0, 1.0),),
        tenant_weights=(0.5, 0.3, 0.2),
        region_weights=(0.6, 0.4),
        label_share=0.5,
        error_rate=0.004,
        confidence_mean=0.8,
        hiccups_per_day=0.0,
        max_output_tokens=400.0,
    )


def joined(batches: list[RecordColumns], name: str) -> npt.NDArray[np.float64]:
    return np.concatenate([batch.numbers[name] for batch in batches])


def same(a: RecordColumns, b: RecordColumns) -> bool:
    arrays = [(a.timestamp_ms, b.timestamp_ms), (a.status, b.status), (a.correct, b.correct)]
    arrays += [(a.numbers[name], b.numbers[name]) for name in NUMBER_FIELDS]
    arrays += [(a.text[name].codes, b.text[name].codes) for name in TEXT_FIELDS]
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in arrays)


def test_bundled_workloads_are_whole() -> None:
    shapes = load_workloads()
    assert len(shapes) == 48
    for shape in shapes.values():
        assert shape.rate_per_s.shape == (2016,)
        assert np.isfinite(shape.rate_per_s).all() and (shape.rate_per_s >= 0).all()
        assert (np.diff(shape.input_tokens_q, axis=1) >= 0).all()
        assert (np.diff(shape.output_tokens_q, axis=1) >= 0).all()


@given(seed=st.integers(0, 10_000), hour=st.integers(0, 24 * 40))
@settings(max_examples=25, deadline=None)
def test_an_hour_is_ordered_finite_and_the_same_again(seed: int, hour: int) -> None:
    profile = sample_profile(np.random.default_rng(seed), model=f"m{seed}", rate_per_s=0.1)
    records = publish(draft_hour(profile, ANCHOR_MS + hour * HOUR_MS, seed))
    assert same(records, publish(draft_hour(profile, ANCHOR_MS + hour * HOUR_MS, seed)))
    assert (np.diff(records.timestamp_ms) >= 0).all()
    assert (records.timestamp_ms // HOUR_MS == ANCHOR_MS // HOUR_MS + hour).all()
    assert len(np.unique(records.request_key)) == len(records)
    for name, values in records.numbers.items():
        known = values[~np.isnan(values)]
        assert np.isfinite(known).all() and (known >= 0).all(), name
    for name in ("gpu_util", "confidence"):
        assert not (records.numbers[name] > 1).any()
    assert (records.is_error == (records.status >= 400)).all()


def test_a_record_does_not_depend_on_where_generation_began() -> None:
    profile = service(rate_per_s=0.2)
    whole = list(generate(profile, ANCHOR_MS, ANCHOR_MS + 6 * HOUR_MS, 9))
    part = list(generate(profile, ANCHOR_MS + 4 * HOUR_MS, ANCHOR_MS + 6 * HOUR_MS, 9))
    assert all(same(a, b) for a, b in zip(whole[-2:], part, strict=True))
    cut = list(generate(profile, ANCHOR_MS + 90 * 60_000, ANCHOR_MS + 150 * 60_000, 9))
    times = np.concatenate([batch.timestamp_ms for batch in cut])
    expected = np.concatenate([batch.timestamp_ms for batch in whole])
    inside = (expected >= ANCHOR_MS + 90 * 60_000) & (expected < ANCHOR_MS + 150 * 60_000)
    assert np.array_equal(times, expected[inside])
    assert [batch.offsets[0] for batch in cut] == [0, len(cut[0])]


@pytest.mark.parametrize("client", ["servegen-48", "servegen-91", "servegen-20", "azure-code"])
def test_arrivals_follow_the_source(client: str) -> None:
    profile = replace(service(client=client, rate_per_s=1.0), shift_bins=0)
    times = np.concatenate([b.timestamp_ms for b in generate(profile, ANCHOR_MS, ANCHOR_MS + 3 * DAY_MS, 4)])
    seen = np.bincount((times - ANCHOR_MS) // (BIN_S * 1000), minlength=3 * 144)
    expected = load_workloads()[client].rate_per_s[: 3 * 144] * profile.scales[0] * BIN_S
    assert abs(seen.sum() / expected.sum() - 1) < 0.02
    busy = expected > 100
    assert np.median(np.abs(seen[busy] / expected[busy] - 1)) < 0.08
    assert (seen[expected == 0] == 0).all()


def test_bursty_bins_are_burstier_than_smooth_ones() -> None:
    profile = replace(service(client="servegen-20", rate_per_s=4.0), shift_bins=0)
    shape = load_workloads()["servegen-20"]
    times = np.concatenate([b.timestamp_ms for b in generate(profile, ANCHOR_MS, ANCHOR_MS + 3 * DAY_MS, 4)])
    variation: dict[bool, list[float]] = {True: [], False: []}
    for number in range(3 * 144):
        low = np.searchsorted(times, ANCHOR_MS + number * BIN_S * 1000)
        high = np.searchsorted(times, ANCHOR_MS + (number + 1) * BIN_S * 1000)
        gaps = np.diff(times[low:high])
        if gaps.size > 100:
            variation[bool(shape.cv[number] > 3)].append(float(gaps.std() / gaps.mean()))
    assert np.median(variation[True]) > 1.5 * np.median(variation[False])


def test_tokens_follow_the_source() -> None:
    profile = replace(service(rate_per_s=3.0), shift_bins=0, wave_sigma=(0.0,) * 7, max_output_tokens=1e9)
    batches = list(generate(profile, ANCHOR_MS, ANCHOR_MS + 6 * HOUR_MS, 4))
    shape = load_workloads()["servegen-48"]
    for name, quantiles in (("input_tokens", shape.input_tokens_q), ("output_tokens", shape.output_tokens_q)):
        values = joined(batches, name)
        values = values[~np.isnan(values) & (np.concatenate([b.status for b in batches]) == 200)]
        assert values.size > 3_000
        for share in (0.1, 0.5, 0.9):
            expected = np.interp(share, shape.quantiles, quantiles[0])
            assert np.quantile(values, share) == pytest.approx(expected, rel=0.12, abs=2), (name, share)


def test_latency_is_its_parts() -> None:
    records = next(iter(generate(service(), NOON_MS, NOON_MS + HOUR_MS, 4)))
    n = {name: values[records.status == 200] for name, values in records.numbers.items()}
    parts = n["queue_ms"] + n["ttft_ms"] + n["tpot_ms"] * np.maximum(n["output_tokens"] - 1, 0)
    assert np.allclose(parts, n["latency_ms"], rtol=1e-3, atol=0.01 * n["output_tokens"].max())


def twins(kind: str, *, hours: int = 3) -> tuple[Windows, Windows, Fault, Touched, Profile]:
    """The same 6 hours without and with a gross fault in the middle."""
    profile = service(rate_per_s=2.0)
    spec = KINDS[kind]
    start = NOON_MS + 2 * HOUR_MS + 120_000
    fault = Fault(kind, profile.series, start, start + hours * HOUR_MS // 2, spec.gross)
    touched = Touched()
    end = NOON_MS + 6 * HOUR_MS
    clean = fold(generate(profile, NOON_MS, end, 4), NOON_MS, end)
    faulty = fold(generate(profile, NOON_MS, end, 4, faults=[fault], touched=touched), NOON_MS, end)
    return clean, faulty, fault, touched, profile


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_fault_moves_its_features_and_nothing_outside_its_time(kind: str) -> None:
    clean, faulty, fault, touched, profile = twins(kind)
    outside = (clean.start_ms + 60_000 <= fault.start_ms) | (clean.start_ms >= fault.end_ms)
    assert np.array_equal(clean.values[outside], faulty.values[outside], equal_nan=True)
    for name, (mean, _) in clean.metrics.items():
        assert np.array_equal(mean[outside], faulty.metrics[name][0][outside], equal_nan=True)
    effect = touched.effects[fault]
    assert effect.records > 100
    assert fault.start_ms <= effect.first_ms <= effect.last_ms < fault.end_ms
    guilty = guilty_features(kind, profile)
    assert guilty
    last = (clean.start_ms >= fault.start_ms + 3 * (fault.end_ms - fault.start_ms) // 4) & ~outside
    moved = 0
    for name in guilty:
        before, after = _feature(clean, name), _feature(faulty, name)
        usual = np.nanstd(before) + 1e-9
        gone = np.isnan(after[last]).all()
        shift = np.inf if gone else abs(np.nanmean(after[last]) - np.nanmean(before[last]))
        moved += bool(shift > 0.25 * usual)
    assert moved >= max(1, len(guilty) // 2), f"{kind} moved {moved} of {guilty}"


def _feature(windows: Windows, name: str) -> npt.NDArray[np.float64]:
    if name.startswith("metric."):
        return windows.metrics[name.removeprefix("metric.")][0]
    return windows.values[:, STATISTIC_INDEX[name]]


def test_guilty_features_are_published_ones() -> None:
    for spec in KINDS.values():
        assert set(spec.guilty) <= set(FEATURES)
        assert (spec.guilty or spec.name == "metric_shift") and spec.mild > 0 and spec.gross > 0


def test_one_fault_does_not_change_another() -> None:
    profile = service()
    first = Fault("slow", profile.series, NOON_MS, NOON_MS + 600_000, 3.0)
    second = Fault("error_burst", profile.series, NOON_MS + 1_200_000, NOON_MS + 1_800_000, 0.5)
    alone = next(iter(generate(profile, NOON_MS, NOON_MS + HOUR_MS, 4, faults=[second])))
    both = next(iter(generate(profile, NOON_MS, NOON_MS + HOUR_MS, 4, faults=[first, second])))
    late = alone.timestamp_ms >= NOON_MS + 600_000
    assert same(alone.take(late), both.take(late))


@given(seed=st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_sampled_faults_keep_apart_and_fit_the_service(seed: int) -> None:
    rng = np.random.default_rng(seed)
    profile = sample_profile(rng, model=f"m{seed}", rate_per_s=0.5)
    faults = sample_faults(profile, rng, ANCHOR_MS, ANCHOR_MS + 5 * DAY_MS, 6)
    assert {fault.kind for fault in faults} <= set(usable_kinds(profile))
    assert all(a.end_ms + 7_200_000 <= b.start_ms for a, b in pairwise(faults))
    for fault in faults:
        spec = KINDS[fault.kind]
        low, high = sorted((spec.mild, spec.gross))
        assert low - 1e-3 <= fault.size <= high + 1e-3
        assert spec.min_s <= (fault.end_ms - fault.start_ms) / 1000 <= spec.max_s
        assert guilty_features(fault.kind, profile)


def test_lines_decode_back_to_the_same_columns() -> None:
    profile = service()
    fault = Fault("error_burst", profile.series, NOON_MS, NOON_MS + HOUR_MS, 0.3)
    records = next(iter(generate(profile, NOON_MS, NOON_MS + HOUR_MS, 4, faults=[fault], request_ids=True)))
    lines = encode_lines(records)
    ends = np.cumsum([len(line) for line in lines])
    raw = RawBatch(
        Partition("t", 0),
        np.arange(len(lines)),
        b"".join(lines),
        np.concatenate([[0], ends[:-1]]),
        ends,
        len(lines),
    )
    decoded, rejected = Decoder(RecordSettings(), SourceSettings(), WindowSettings()).decode(
        raw, now_ms=NOON_MS + DAY_MS
    )
    assert not rejected
    assert np.array_equal(decoded.timestamp_ms, records.timestamp_ms)
    for name in NUMBER_FIELDS:
        assert np.array_equal(decoded.numbers[name], records.numbers[name], equal_nan=True), name
    for name in TEXT_FIELDS:
        one, two = ([[*t.values, None][c] for c in t.codes] for t in (decoded.text[name], records.text[name]))
        assert one == two, name
    assert np.array_equal(decoded.status, records.status)
    assert np.array_equal(decoded.is_error, records.is_error)
    assert np.array_equal(decoded.correct, records.correct)
    assert decoded.request_ids == records.request_ids
    assert np.array_equal(decoded.metrics["quality"], records.metrics["quality"], equal_nan=True)


def test_simulate_writes_the_same_file_again_and_the_truth(tmp_path: Path) -> None:
    options = SimulateOptions(
        out=tmp_path / "a.jsonl.gz",
        days=0.5,
        services=3,
        rate_per_s=0.1,
        faults=("slow@1:6h+30m*3", "outage@chat-small/support:2026-01-05T08:00:00Z+20m"),
        truth=tmp_path / "truth.json",
    )
    hours: list[int] = []
    summary = simulate(options, on_progress=lambda at_ms, records: hours.append(at_ms))
    again = simulate(replace(options, out=tmp_path / "b.jsonl", truth=None))
    with gzip.open(tmp_path / "a.jsonl.gz") as packed:
        text = packed.read()
    assert text == (tmp_path / "b.jsonl").read_bytes()
    assert summary.records == again.records == text.count(b"\n") == sum(summary.series.values()) > 1_000
    assert summary.bytes == len(text)
    assert len(hours) == 12 and hours[-1] == summary.end_ms
    times = [json.loads(line)["timestamp"] for line in text.splitlines()]
    assert times == sorted(times)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["version"] == 1 and truth["start"] == "2026-01-05T00:00:00Z"
    assert [entry["series"] for entry in truth["series"]] == list(summary.series)
    slow = next(fault for fault in truth["faults"] if fault["kind"] == "slow")
    assert slow["start"] == "2026-01-05T06:00:00Z" and slow["end"] == "2026-01-05T06:30:00Z"
    assert slow["visible_from"].startswith("2026-01-05T06:0") and slow["visible"] and not slow["benign"]
    assert slow["size"] == 3.0 and slow["guilty"][0] == "latency_p50_ms" and slow["records"] >= 5


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("slow", "KIND@SERVICE"),
        ("sloww@1:6h+30m", "no kind"),
        ("slow@9:6h+30m", "no service"),
        ("slow@1:6x+30m", "is no time"),
        ("slow@1:6h+30", "no length of time"),
        ("slow_ttft@4:6h+30m", "does not log"),
    ],
)
def test_a_wrong_fault_says_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(InferwatchError, match=part):
        parse_fault(text, make_services(4, 1), ANCHOR_MS)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(InferwatchError, match="--out"):
        simulate(SimulateOptions())
    with pytest.raises(InferwatchError, match="--services"):
        simulate(SimulateOptions(out=tmp_path / "x", services=0))


def test_the_bundled_demo_log_matches_its_truth() -> None:
    folder = Path(__file__).parent.parent / "monitor" / "data" / "demo"
    truth = json.loads((folder / "truth.json").read_text())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_500_000
    assert all(fault["visible"] for fault in truth["faults"])
    assert min(fault["start"] for fault in truth["faults"]) > "2026-01-06T12:00:00Z"
    with gzip.open(folder / "services.jsonl.gz") as packed:
        first, *_, last = packed
    assert json.loads(first)["timestamp"] >= ANCHOR_MS
    assert json.loads(last)["timestamp"] < ANCHOR_MS + 3 * DAY_MS


def test_the_exact_fold_and_the_pipeline_see_the_same_windows() -> None:
    profile, end = service(rate_per_s=0.5), ANCHOR_MS + 6 * HOUR_MS
    batches = list(generate(profile, ANCHOR_MS, end, 3))
    exact = fold(batches, ANCHOR_MS, end)
    windows = PartitionWindows(
        WindowSettings(),
        ["model", "endpoint"],
        batches[0].partition,
        watermark_ms=None,
        next_offset=None,
        close_offset=None,
        load_sketch=lambda series, start_ms: None,
    )
    compared = 0
    for batch in batches:
        for step in windows.add(batch).steps:
            assert isinstance(step, ClosedWindows)
            row = (step.batch.window_start_ms - ANCHOR_MS) // 60_000
            for name, column in STATISTIC_INDEX.items():
                tolerance = 2.5 if name == "largest_gap_s" else 1e-6
                seen, expected = step.batch.values[0, column], exact.values[row, column]
                assert seen == pytest.approx(expected, rel=0.021, abs=tolerance, nan_ok=True), name
            assert np.array_equal(step.batch.counts[0], exact.counts[row])
            compared += 1
    assert compared > 300
