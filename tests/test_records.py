"""The decoder: every message becomes a row or a rejection with a reason."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.record_types import RequestIds
from monitor.records import (
    NUMBER_FIELDS,
    REJECT_REASONS,
    TEXT_FIELDS,
    Decoder,
    RecordColumns,
    RejectedRecord,
    request_key,
)
from monitor.sources.base import Partition
from monitor.sources.batches import pack

LOG = Partition("log", 0)
NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
CANARY = "Zq7canary"


def decode(
    *values: bytes | None, max_metrics: int = 16, max_record_bytes: int = 262_144
) -> tuple[RecordColumns, list[RejectedRecord]]:
    decoder = Decoder(
        RecordSettings(max_metrics=max_metrics),
        SourceSettings(max_record_bytes=max_record_bytes),
        WindowSettings(),
    )
    return decoder.decode(pack(LOG, range(7, 7 + len(values)), values, 7 + len(values)), now_ms=NOW_MS)


def record(**fields: Any) -> bytes:
    return json.dumps({"timestamp": NOW_MS, "model": "m", **fields}).encode()


def reason(value: bytes | None, **options: int) -> str:
    columns, rejected = decode(value, **options)
    assert len(columns) == 0 and [r.offset for r in rejected] == [7]
    return rejected[0].reason


def text(columns: RecordColumns, name: str, row: int) -> str | None:
    code = columns.text[name].codes[row]
    return None if code < 0 else columns.text[name].values[code]


def test_a_whole_record() -> None:
    fields = {name: name for name in TEXT_FIELDS} | {
        "request_id": "r-1",
        "status": 503,
        "metrics": {"kv": 0.5},
    }
    numbers = dict.fromkeys(NUMBER_FIELDS, 0.5)
    columns, rejected = decode(record(**fields, **numbers, prediction="cat", label="cat", prompt="x" * 999))
    assert not rejected
    assert [text(columns, name, 0) for name in TEXT_FIELDS] == list(TEXT_FIELDS)
    assert [columns.numbers[name][0] for name in NUMBER_FIELDS] == [0.5] * len(NUMBER_FIELDS)
    assert (columns.offsets[0], columns.timestamp_ms[0], columns.status[0]) == (7, NOW_MS, 503)
    assert (columns.is_error[0], columns.correct[0], columns.metrics["kv"][0]) == (1, 1, 0.5)
    assert columns.request_ids == ["r-1"] and columns.request_key[0] == request_key("r-1")


def test_a_record_with_nothing_but_what_is_required() -> None:
    columns, _ = decode(record(latency_ms=None, tenant="", request_id=""))
    assert [text(columns, name, 0) for name in TEXT_FIELDS[1:]] == [None] * 6
    assert all(np.isnan(column[0]) for column in columns.numbers.values())
    assert (columns.status[0], columns.is_error[0], columns.correct[0]) == (0, 0, -1)
    assert (columns.request_key[0], columns.request_ids, columns.metrics) == (0, [None], {})


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-01-01T00:00:00Z",
        "2026-01-01T02:00:00+02:00",
        "2025-12-31T14:30:00.000-09:30",
        NOW_MS // 1000,
        NOW_MS / 1000,
        NOW_MS,
        NOW_MS * 1000,
        NOW_MS * 1_000_000,
    ],
)
def test_every_way_to_write_a_time(timestamp: str | float) -> None:
    columns, _ = decode(record(timestamp=timestamp))
    assert columns.timestamp_ms.tolist() == [NOW_MS]


@given(st.integers(946_684_800_000, NOW_MS), st.integers(0, 999), st.integers(-23, 23))
def test_milliseconds_are_rounded_down_in_every_unit(ms: int, us: int, hours: int) -> None:
    aware = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms, microseconds=us)
    text = aware.astimezone(timezone(timedelta(hours=hours))).isoformat()
    columns, rejected = decode(
        record(timestamp=text),
        record(timestamp=ms * 1000 + us),
        record(timestamp=(ms * 1000 + us) * 1000),
        record(timestamp=ms),
    )
    assert not rejected and columns.timestamp_ms.tolist() == [ms] * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "tombstone"),
        (b"", "not_json"),
        (b"hello", "not_json"),
        (b'{"timestamp":1', "not_json"),
        (b'{"timestamp":1767225600,"model":"m"} x', "not_json"),
        (b'{"timestamp":1767225600,"model":"\xff"}', "invalid_utf8"),
        (b"[1,2]", "not_an_object"),
        (b'"x"', "not_an_object"),
        (b'{"model":"m"}', "missing_field"),
        (b'{"timestamp":1767225600}', "missing_field"),
        (record(model=None), "missing_field"),
        (record(model=3), "wrong_type"),
        (record(model=""), "out_of_range"),
        (record(model="m" * 513), "out_of_range"),
        (record(model="a\0b"), "out_of_range"),
        (record(tenant="\0"), "out_of_range"),
        (record(metrics={"\0": 1}), "out_of_range"),
        (record(model="\ud800"), "out_of_range"),
        (record(latency_ms="12"), "wrong_type"),
        (record(latency_ms=True), "wrong_type"),
        (record(latency_ms=-1), "out_of_range"),
        (record(latency_ms=math.nan), "not_finite"),
        (record(latency_ms=math.inf), "not_finite"),
        (record(other=[math.nan]), "not_finite"),
        (record(latency_ms=0).replace(b": 0", b": 1e999"), "out_of_range"),
        (record(input_tokens=2**63), "out_of_range"),
        (record(input_tokens=int("9" * 400)), "out_of_range"),
        (record(prediction=int("9" * 400)), "out_of_range"),
        (record(label=2**63), "out_of_range"),
        (record(label=["x"]), "wrong_type"),
        (record(gpu_util=1.01), "out_of_range"),
        (record(confidence=-0.1), "out_of_range"),
        (record(status="fine"), "out_of_range"),
        (record(status=99), "out_of_range"),
        (record(status=2.5), "wrong_type"),
        (record(metrics=[1]), "wrong_type"),
        (record(metrics={"a": "b"}), "wrong_type"),
        (record(metrics={"": 1}), "out_of_range"),
        (record(timestamp="yesterday"), "timestamp_invalid"),
        (record(timestamp="2026-01-01T00:00:00"), "timestamp_invalid"),
        (record(timestamp=str(NOW_MS)), "timestamp_invalid"),
        (record(timestamp=True), "timestamp_invalid"),
        (record(timestamp=-5), "timestamp_out_of_range"),
        (record(timestamp=0), "timestamp_out_of_range"),
        (record(timestamp=10**30), "timestamp_out_of_range"),
        (record(timestamp="1999-12-31T23:59:59Z"), "timestamp_out_of_range"),
        (record(timestamp="2100-01-01T00:00:00Z"), "timestamp_out_of_range"),
        (record(timestamp="0001-01-01T00:00:00+10:00"), "timestamp_out_of_range"),
        (record(timestamp="9999-12-31T23:59:59-10:00"), "timestamp_out_of_range"),
        (record(timestamp=NOW_MS + 300_001), "timestamp_in_future"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "too_deep"),
        (b"[" * 100_000, "too_deep"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_refusal_has_its_reason(value: bytes | None, expected: str) -> None:
    assert reason(value) == expected


def test_size_is_bounded_before_anything_is_read() -> None:
    exact = record(pad="")
    fitting = record(pad="x" * (300 - len(exact)))
    assert len(decode(fitting, max_record_bytes=300)[0]) == 1
    assert reason(fitting + b" ", max_record_bytes=300) == "too_large"


def test_a_bad_neighbour_changes_nothing() -> None:
    columns, rejected = decode(
        record(tenant="a"), b"{", record(tenant="b"), None, record(timestamp=0), record()
    )
    assert columns.offsets.tolist() == [7, 9, 12]
    assert [text(columns, "tenant", i) for i in range(3)] == ["a", "b", None]
    assert [(r.offset, r.reason) for r in rejected] == [
        (8, "not_json"),
        (10, "tombstone"),
        (11, "timestamp_out_of_range"),
    ]


@pytest.mark.parametrize(
    ("fields", "correct"),
    [
        ({"label": "a", "prediction": "b"}, 0),
        ({"label": 1, "prediction": 1.0}, 1),
        ({"label": "1", "prediction": 1}, 0),
        ({"label": True, "prediction": True}, 1),
        ({"label": "a"}, 0),
        ({"prediction": "a"}, -1),
    ],
)
def test_prediction_against_label(fields: dict[str, Any], correct: int) -> None:
    assert decode(record(**fields))[0].correct.tolist() == [correct]


@pytest.mark.parametrize(
    ("fields", "status", "is_error"),
    [
        ({"status": "ok"}, 200, 0),
        ({"status": "error"}, 500, 1),
        ({"status": 399}, 399, 0),
        ({"status": 400}, 400, 1),
        ({"error_type": "timeout"}, 0, 1),
        ({"status": 200, "error_type": "timeout"}, 200, 0),
    ],
)
def test_what_counts_as_an_error(fields: dict[str, Any], status: int, is_error: int) -> None:
    columns, _ = decode(record(**fields))
    assert (columns.status[0], columns.is_error[0]) == (status, is_error)


def test_user_metrics_are_bounded_per_partition_and_the_rest_is_counted() -> None:
    decoder = Decoder(RecordSettings(max_metrics=2), SourceSettings(), WindowSettings())
    for names in ({"a": 1, "b": 2}, {"c": 3, "a": None, "b": 5}):
        columns, _ = decoder.decode(pack(LOG, [1], [record(metrics=names)]), now_ms=NOW_MS)
    assert columns.metrics["b"].tolist() == [5.0] and np.isnan(columns.metrics["a"][0])
    assert set(columns.metrics) == {"a", "b"} and decoder.ignored_metrics == 1


@pytest.mark.parametrize(
    "value",
    [
        record(prompt=CANARY, latency_ms=-1),
        record(model={"prompt": CANARY}),
        record(prediction=CANARY, status=1),
        CANARY.encode() * 100,
        b'{"prompt": "' + CANARY.encode() + b'\xff"}',
        b'{"' + CANARY.encode() + b'": 1}',
        record(prompt=CANARY, timestamp=0),
    ],
)
def test_samples_are_short_printable_and_say_nothing_of_the_content(value: bytes) -> None:
    sample = decode(value)[1][0].sample
    assert sample and len(sample) <= 200 and sample.isprintable()
    assert CANARY not in sample and "canary" not in sample


def test_take_by_slice_mask_and_rows() -> None:
    columns, _ = decode(*(record(request_id=f"r{i}", metrics={"a": i}, tenant=str(i % 2)) for i in range(6)))
    mask = np.array([False, True, False, True, False, False])
    for rows in (slice(1, 4, 2), mask, np.array([1, 3])):
        taken = columns.take(rows)
        assert taken.request_ids == ["r1", "r3"] and taken.offsets.tolist() == [8, 10]
        assert taken.metrics["a"].tolist() == [1, 3] and text(taken, "tenant", 1) == "1"


def test_request_ids_are_the_same_one_by_one_and_together() -> None:
    wanted = ["r1", None, "Zürich", 'say "x"', "r5"]
    ids = decode(*(record(request_id=each) for each in wanted))[0].request_ids
    assert isinstance(ids, RequestIds)
    assert list(ids) == wanted and ids[1:4] == wanted[1:4] and ids != wanted[:2]
    kept = ids.kept(np.array([4, 3, 1, 2, 3]))
    assert kept == ["r5", 'say "x"', None, "Zürich", 'say "x"']
    assert kept[1:4] == ['say "x"', None, "Zürich"]


def test_request_keys_are_stable_and_apart() -> None:
    assert request_key("4f9c1a52") == 1_891_526_326_470_789_671
    assert len({request_key(f"request-{i}") for i in range(100_000)}) == 100_000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
some_record = st.fixed_dictionaries(
    {"timestamp": st.just(NOW_MS) | st.integers() | anything, "model": st.text(max_size=5) | anything},
    optional={
        "latency_ms": st.floats(-1, 1e16) | anything,
        "gpu_util": st.floats(-0.5, 1.5) | anything,
        "input_tokens": st.integers(-1, 2**70),
        "tenant": st.text(max_size=5) | anything,
        "status": st.sampled_from(["ok", "error", "OK"]) | st.integers(90, 610) | anything,
        "label": anything,
        "metrics": st.dictionaries(st.text(max_size=3), st.floats(), max_size=3) | anything,
        "other": anything,
    },
)


def expected_row(found: dict[str, Any]) -> tuple[str, float | None] | None:
    """A plain reading of the rules: (model, latency) of a record that must be accepted, else None."""

    def number(name: str, high: float) -> bool:
        v = found.get(name)
        return v is None or (type(v) in (int, float) and 0 <= v <= high)

    def short(v: Any, low: int = 0) -> bool:
        return type(v) is str and low <= len(v) <= 512 and "\0" not in v

    def finite(v: Any) -> bool:
        if isinstance(v, dict):
            return all(finite(x) for x in v.values())
        if isinstance(v, list):
            return all(finite(x) for x in v)
        return not isinstance(v, float) or math.isfinite(v)

    t, label, status, metrics = (found.get(n) for n in ("timestamp", "label", "status", "metrics"))
    if type(t) not in (int, float) or not finite(found):
        return None
    scale = next((s for s, below in ((1, 1e11), (1e3, 1e14), (1e6, 1e17)) if t < below), 1e9)
    seconds = t / scale
    good = (
        946_684_800 <= seconds <= NOW_MS / 1000 + 300
        and short(found["model"], 1)
        and (found.get("tenant") is None or short(found["tenant"]))
        and number("latency_ms", 1e15)
        and number("gpu_util", 1)
        and number("input_tokens", 1e15)
        and (status in (None, "ok", "error") or (type(status) is int and 100 <= status <= 599))
        and not isinstance(label, dict | list)
        and not (isinstance(label, int) and not -(2**63) <= label < 2**63)
        and (metrics is None or isinstance(metrics, dict))
        and all(
            k and "\0" not in k and (v is None or (type(v) in (int, float) and abs(v) <= 1e15))
            for k, v in (metrics or {}).items()
        )
    )
    return (found["model"], found.get("latency_ms")) if good else None


@settings(max_examples=200, deadline=None)
@given(st.lists(some_record, max_size=5))
def test_rows_equal_a_plain_reading_of_the_rules(records: list[dict[str, Any]]) -> None:
    columns, rejected = decode(*(json.dumps(r).encode() for r in records))
    wanted = [(7 + i, row) for i, r in enumerate(records) if (row := expected_row(r)) is not None]
    assert [(int(o), text(columns, "model", i)) for i, o in enumerate(columns.offsets)] == [
        (o, model) for o, (model, _) in wanted
    ]
    latencies = [math.nan if value is None else float(value) for _, (_, value) in wanted]
    np.testing.assert_array_equal(columns.numbers["latency_ms"], latencies)
    assert sorted([*columns.offsets.tolist(), *(r.offset for r in rejected)]) == list(
        range(7, 7 + len(records))
    )


mangled = st.builds(
    lambda whole, at, junk, cut: whole[:at] + junk + whole[at + cut :],
    some_record.map(lambda r: json.dumps(r).encode()),
    st.integers(0, 80),
    st.binary(max_size=4),
    st.integers(0, 5),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=60) | mangled, max_size=5))
def test_any_bytes_are_accounted_for(values: list[bytes | None]) -> None:
    columns, rejected = decode(*values)
    assert sorted([*columns.offsets.tolist(), *(r.offset for r in rejected)]) == list(
        range(7, 7 + len(values))
    )
    for r in rejected:
        assert r.reason in REJECT_REASONS and len(r.sample) <= 200
        assert r.sample == "" or r.sample.isprintable()
