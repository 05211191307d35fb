"""Sketches: quantiles within their bound, merging like one pass, bytes that come back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.types import STATISTIC_INDEX, STATISTICS
from monitor.aggregate import OpenWindow
from monitor.columns import Texts, prepare
from monitor.records import NUMBER_FIELDS
from monitor.sketch_reader import decode
from monitor.sketch_writer import encode
from monitor.sketches import SLICE_SLOTS, Aggregate, merge, slice_rows, versions
from monitor.window_statistics import metric_means, statistics
from tests.window_oracle import Record, columns, nearest_rank

WINDOW_MS = 60_000


def aggregate(records: Sequence[Record]) -> Aggregate:
    texts = Texts()
    window = OpenWindow(0, WINDOW_MS, max_metrics=16)
    batch = prepare(columns(records), np.zeros(len(records), np.int32), texts)
    window.add(batch, np.arange(len(records)))
    return window.close(np.zeros(1, np.int64), texts.values)


def some_records(seed: int, n: int, first_id: int) -> list[Record]:
    rng = random.Random(seed)
    return [
        Record(
            at_ms=rng.randrange(WINDOW_MS),
            model_version=rng.choice([None, "1", "2"]),
            tenant=rng.choice(["t", "u", "v"]),
            request_id=first_id + i,
            is_error=rng.randint(0, 1),
            numbers={
                name: float(rng.randint(0, 40)) if "tokens" in name else rng.lognormvariate(2, 2)
                for name in rng.sample(NUMBER_FIELDS, rng.randint(0, 10))
            },
            metrics={rng.choice("pqr"): rng.uniform(0, 5)},
        )
        for i in range(n)
    ]


def same(a: Aggregate, b: Aggregate) -> None:
    """Equal but for the rounding of sums and the order of keys."""
    np.testing.assert_allclose(a.sums, b.sums, rtol=1e-9)
    for one, other in zip(statistics(a, WINDOW_MS), statistics(b, WINDOW_MS), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=2e-6)
    assert sorted(a.keys.tolist()) == sorted(b.keys.tolist())
    for part in ("bounds", "buckets", "counts"):
        assert getattr(a.histograms, part).tolist() == getattr(b.histograms, part).tolist()
    for x, y in zip(slice_rows(a.slices, 0), slice_rows(b.slices, 0), strict=True):
        assert x == pytest.approx(y) if isinstance(x, float) else x[:5] == y[:5]
        assert x[5] == pytest.approx(y[5])
    means_a, means_b = metric_means(a), metric_means(b)
    assert means_a.keys() == means_b.keys()
    for name, (mean, count) in means_a.items():
        assert mean == pytest.approx(means_b[name][0]) and count == means_b[name][1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 16), st.tuples(*[st.integers(1, 30)] * 3))
def test_merging_is_like_one_pass_in_any_order(seed: int, sizes: tuple[int, int, int]) -> None:
    parts = [some_records(seed + i, size, 1_000 * i + 1) for i, size in enumerate(sizes)]
    a, b, c = (aggregate(part) for part in parts)
    whole = aggregate([record for part in parts for record in part])
    same(merge(merge(a, b), c), whole)
    same(merge(a, merge(b, c)), whole)
    same(merge(c, merge(b, a)), whole)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 16), st.integers(1, 60), st.booleans())
def test_bytes_come_back_as_they_were(seed: int, n: int, new_version: bool) -> None:
    before = aggregate(some_records(seed, n, 1))
    (blob,) = encode(before, [new_version])
    after, flag = decode(blob)
    assert flag is new_version
    same(after, before)
    np.testing.assert_array_equal(after.sums, before.sums)
    assert sorted(versions(after.slices).get(0, [])) == sorted(versions(before.slices).get(0, []))
    assert encode(after, [new_version]) == [blob]


@pytest.mark.parametrize("most", [200, 300, 70_000])
def test_counts_of_any_size_come_back(most: int) -> None:
    """They are stored as narrow as the largest one allows."""
    one = aggregate([Record(0, tenant="t", numbers={"latency_ms": 5.0})])
    many = replace(
        one,
        histograms=replace(one.histograms, counts=one.histograms.counts * np.uint32(most)),
        slices=replace(one.slices, counts=one.slices.counts * most),
    )
    blobs = [encode(each, [False])[0] for each in (one, many)]
    after, _ = decode(blobs[1])
    assert after.histograms.counts.tolist() == many.histograms.counts.tolist() == [most]
    assert after.slices.counts.tolist() == many.slices.counts.tolist()
    assert after.histograms.counts.dtype == np.uint32 and after.slices.counts.dtype == np.int64
    assert (len(blobs[1]) > len(blobs[0])) == (most > 255)


def packed(of: Aggregate, version: int, *, is_new: bool) -> list[object]:
    """A sketch as it was stored until format 3; in format 2 counts have their full width."""
    slices, histograms = of.slices, of.histograms
    wide = (np.uint32, np.int64) if version == 2 else (np.uint8, np.uint8)
    return [
        *(version, is_new, np.concatenate([of.sums, of.minima, of.maxima], axis=1).tobytes()),
        *(np.packbits(of.grid).tobytes(), np.diff(histograms.bounds).astype(np.uint16).tobytes()),
        *(histograms.buckets.tobytes(), histograms.counts.astype(wide[0]).tobytes()),
        *(of.keys.tobytes(), of.pairs.tobytes(), slices.fields.tobytes()),
        *(slices.counts.astype(wide[1]).tobytes(), slices.latency.tobytes()),
        *([slices.texts[i] for i in slices.ids.tolist()], []),
    ]


@pytest.mark.parametrize("version", [2, 3])
def test_sketches_of_the_formats_before_are_read(version: int) -> None:
    records = [replace(record, metrics={}) for record in some_records(3, 40, 1)]
    before = aggregate(records)
    parts = packed(before, version, is_new=True)
    after, flag = decode(msgspec.msgpack.encode(parts))
    assert flag and encode(after, [True]) == encode(before, [True])
    parts[6] = bytes(3 * len(before.histograms.counts))
    with pytest.raises(ValueError, match="sketch"):
        decode(msgspec.msgpack.encode(parts))


def test_several_windows_are_what_each_is_alone() -> None:
    """Rows of a batch do not know of each other, and what is not there takes no room."""
    texts, window = Texts(), OpenWindow(0, WINDOW_MS, max_metrics=16)
    parts = [some_records(7, 30, 1), [Record(5)], some_records(8, 300, 1_000)]
    records = [record for part in parts for record in part]
    rows = np.repeat(np.arange(3, dtype=np.int32), [len(part) for part in parts])
    window.add(prepare(columns(records), rows, texts), np.arange(len(records)))
    blobs = encode(window.close(np.arange(3), texts.values), [False, True, False])
    for part, blob, is_new in zip(parts, blobs, [False, True, False], strict=True):
        found, flag = decode(blob)
        same(found, aggregate(part))
        assert flag is is_new
    assert len(blobs[1]) < 120


values = st.one_of(st.just(0.0), st.floats(2.0**-20, 1e13), st.integers(0, 10_000).map(float))


@settings(max_examples=300, deadline=None)
@given(st.lists(values, min_size=1, max_size=60))
def test_quantiles_are_within_two_percent_of_the_nearest_rank(latencies: list[float]) -> None:
    records = [Record(0, numbers={"latency_ms": x, "output_tokens": x}) for x in latencies]
    found, counts = statistics(aggregate(records), WINDOW_MS)
    for name, percent in (
        ("latency_p50_ms", 50),
        ("latency_p95_ms", 95),
        ("latency_p99_ms", 99),
        ("output_tokens_p95", 95),
    ):
        at = STATISTIC_INDEX[name]
        assert found[0, at] == pytest.approx(nearest_rank(latencies, percent), rel=0.0154, abs=0)
        assert counts[0, at] == len(latencies)


def test_one_bucket_is_clamped_to_what_was_seen() -> None:
    found, _ = statistics(aggregate([Record(0, numbers={"ttft_ms": 123.456})] * 9), WINDOW_MS)
    assert found[0, STATISTIC_INDEX["ttft_p50_ms"]] == 123.456


def test_absent_fields_are_nan_on_no_record() -> None:
    found, counts = statistics(aggregate([Record(0)]), WINDOW_MS)
    there = {name for name in STATISTICS if counts[0, STATISTIC_INDEX[name]]}
    assert there == {"request_count", "error_rate", "largest_gap_s"}
    assert np.isnan(found[0][counts[0] == 0]).all()


def test_a_field_with_many_values_keeps_the_first_ones() -> None:
    records = [Record(0, tenant=f"t{i}") for i in range(100)]
    rows = slice_rows(aggregate(records).slices, 0)
    assert len(rows) == SLICE_SLOTS
    other = aggregate([Record(0, tenant="u")] * 3)
    merged = slice_rows(merge(aggregate(records), other).slices, 0)
    assert len(merged) == SLICE_SLOTS and merged[0][1:3] == ("u", 3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b[:-1],
        lambda b: b[:5],
        lambda b: b + b"\0",
        lambda b: b[:2] + b"\3" + b[3:],
        lambda b: b[:22] + b"\xff\xff" + b[24:],
        lambda b: b"",
        lambda b: b"\xc1" + b,
        lambda b: b"\x90",
    ],
)
def test_what_is_no_sketch_is_refused(spoil: object) -> None:
    (blob,) = encode(aggregate([Record(0)]), [False])
    with pytest.raises(ValueError, match="sketch"):
        decode(spoil(blob))  # type: ignore[operator]
