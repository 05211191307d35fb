"""The compiled scanner and msgspec give the same values for every message, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import RecordSettings, SourceSettings, WindowSettings
from monitor.formats import native, scanner
from monitor.records import NUMBER_FIELDS, TEXT_FIELDS, Decoder, RecordColumns, RejectedRecord, request_key
from monitor.sources.base import Partition
from monitor.sources.batches import pack

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def decode(values: list[bytes], *, by_hand: bool = False) -> tuple[RecordColumns, list[RejectedRecord], int]:
    """Columns, rejects, and how many rows msgspec has read; `by_hand`: all of them."""
    decoder = Decoder(RecordSettings(max_metrics=3), SourceSettings(), WindowSettings())
    with pytest.MonkeyPatch.context() as patch:
        if by_hand:
            patch.setattr(scanner, "scan", lambda buffer, starts, *_: len(starts))
        batch = pack(Partition("log", 0), range(len(values)), values, len(values))
        columns, rejected = decoder.decode(batch, now_ms=NOW_MS)
    return columns, rejected, decoder.rows_by_hand


def listed(columns: RecordColumns) -> dict[str, Any]:
    """Everything in plain lists; text without its codes, NaN as None."""
    found: dict[str, Any] = {"offset": columns.offsets.tolist(), "time": columns.timestamp_ms.tolist()}
    for name in TEXT_FIELDS:
        column = columns.text[name]
        found[name] = [None if code < 0 else column.values[code] for code in column.codes.tolist()]
    for name, numbers in {
        **columns.numbers,
        **{f"metric {k}": v for k, v in columns.metrics.items()},
    }.items():
        found[name] = [None if np.isnan(x) else x.hex() for x in numbers.tolist()]
    for name in ("status", "is_error", "correct", "request_key"):
        found[name] = getattr(columns, name).tolist()
    found["ids"] = list(columns.request_ids)
    found["metrics"] = list(columns.metrics)
    return found


def agree(values: list[bytes]) -> int:
    """Both ways, compared; returns how many rows the scanner left alone."""
    columns, rejected, left = decode(values)
    wanted, wanted_rejects, _ = decode(values, by_hand=True)
    assert listed(columns) == listed(wanted)
    assert rejected == wanted_rejects
    return left


plain_text = st.text(st.sampled_from("abcXYZ019-_/. :{}[],"), max_size=24)
any_text = (
    plain_text | st.text(max_size=12) | st.sampled_from(["", "é", 'a"b', "a\\b", "\n", "x" * 513, "\0"])
)
decimals = st.decimals(-5, 2_000_000, places=3).map(float)
numbers = (
    st.integers(-3, 10**17) | decimals | st.floats() | st.sampled_from([0, 1e15, 2**53, 0.1, 1e-7, 1e22])
)
scalars = st.none() | st.booleans() | numbers | any_text
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(any_text, scalars, max_size=3)
times = (
    st.datetimes().map(lambda t: t.isoformat() + "Z")
    | st.sampled_from(["2025-02-29T00:00:00Z", "2024-02-29T23:59:59.999999+23:59", "2025-04-31T00:00:00Z"])
    | st.sampled_from(["2025-12-31T24:00:00Z", "2025-12-31T23:59:60Z", "2025-12-31t23:59:00z"])
    | st.sampled_from(["2025-12-31T23:59:00.1234567Z", "2025-12-31T23:59:00.Z", "2025-12-31T23:59:00-00:00"])
    | st.integers(0, NOW_MS * 10**6)
    | st.floats(0, NOW_MS / 1000)
)
common = st.fixed_dictionaries(
    {"timestamp": times, "model": plain_text},
    optional={
        **dict.fromkeys(TEXT_FIELDS[1:], plain_text | st.none()),
        **dict.fromkeys(NUMBER_FIELDS, decimals | st.integers(0, 9_000) | st.none()),
        "request_id": plain_text | st.none(),
        "status": st.sampled_from(["ok", "error", None, 200, 404, 99]) | values,
        "label": st.sampled_from(["a", "b", 1, True, None, 1.0]),
        "prediction": st.sampled_from(["a", "b", 1, True, None, 1.0]),
        "metrics": st.dictionaries(st.sampled_from("abcde"), numbers | st.none(), max_size=4) | values,
        "prompt": values,
    },
)
wild = st.dictionaries(st.sampled_from(native.FIELDS) | any_text, values, max_size=8)


def written(record: dict[str, Any], style: int) -> bytes:
    compact, ascii_only, indent = style & 1, bool(style & 2), 1 if style & 4 else None
    separators = (",", ":") if compact else None
    return json.dumps(record, separators=separators, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass"
    )


messages = st.builds(written, common | wild, st.integers(0, 7))
mangled = st.builds(
    lambda whole, at, junk, cut: whole[: at % (len(whole) + 1)] + junk + whole[at % (len(whole) + 1) + cut :],
    messages,
    st.integers(0, 600),
    st.binary(max_size=3) | st.sampled_from([b",", b'"', b"}", b"{", b":", b"0", b"-", b".", b"e5"]),
    st.integers(0, 3),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(messages | mangled, max_size=6))
def test_both_paths_agree_on_every_value(found: list[bytes]) -> None:
    agree(found)


PLAIN: dict[str, Any] = {
    "timestamp": "2025-12-31T23:59:59.123Z",
    "model": "chat",
    "request_id": "4f9c1a52",
    "status": 200,
    "latency_ms": 812.25,
    "output_tokens": 12,
    "gpu_util": 0.5,
    "label": "spam",
    "prediction": "spam",
    "metrics": {"hit": 0.25, "cold": None, "drift": -2.5},
    "prompt": "kept out",
    "attempt": 3,
}


def test_rows_that_look_like_the_one_before_up_to_a_point() -> None:
    """Names are guessed from the row before: what differs in the last byte, or ends too early, is not."""
    usual = b'{"timestamp":1767225600,"model":"m","latency_ms":12.5,"tenant":"t","output_tokens":7}'
    long = {"timestamp": 1767225600, "model": "m", **{f"unknown_{i}": i for i in range(60)}, "tenant": "t"}
    others = [
        usual,
        usual.replace(b'"tenant"', b'"tenanu"'),
        usual.replace(b'"latency_ms":', b'"latency_ms": '),
        usual.replace(b'"latency_ms":12.5,"tenant":"t"', b'"tenant":"t","latency_ms":12.5'),
        usual.replace(b'"tenant"', b'"model"'),
        usual[: usual.index(b'"tenant"') + 9],
        usual[: usual.index(b'"tenant"') + 5],
        usual.replace(b',"tenant":"t"', b""),
        b'{"timestamp":1767225600,"model":"m"}',
        json.dumps(long).encode(),
        json.dumps(long, separators=(",", ":")).encode(),
    ]
    for other in others:
        agree([usual, other, usual, other, other, usual])
    columns, rejected, left = decode([usual] * 3 + [others[3]] + [usual] * 3)
    assert not rejected and left == 0
    assert columns.numbers["latency_ms"].tolist() == [12.5] * 7


@pytest.mark.parametrize("style", range(8))
def test_the_common_shape_never_reaches_msgspec(style: int) -> None:
    assert agree([written({**PLAIN, "tenant": f"t{i % 3}"}, style) for i in range(50)]) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "Zürich"},
        {"tenant": 'say "x"'},
        {"prompt": {"nested": 1}},
        {"latency_ms": 1e-9},
        {"latency_ms": 0.12345678901234567},
        {"label": True, "prediction": 1},
        {"label": 0.5},
    ],
    ids=str,
)
def test_what_is_not_plain_is_read_by_msgspec(fields: dict[str, Any]) -> None:
    assert agree([written(PLAIN, 1), written({**PLAIN, **fields}, 1), written(PLAIN, 1)]) == 1


@pytest.mark.parametrize(
    "tail",
    [b"", b" ", b" x", b"}", b',"model":"b"}', b',"tenant":1}', b',"tenant":01}', b',"latency_ms":1.}'],
    ids=str,
)
def test_ends_and_odd_tails(tail: bytes) -> None:
    whole = written(PLAIN, 1)
    agree([whole + tail, whole[:-1] + tail, tail])


def test_more_texts_than_rows_and_many_metrics() -> None:
    names = [f"m{i}" for i in range(40)]
    rows = [{**PLAIN, "metrics": {f"{name}-{row}": row for name in names}} for row in range(20)]
    agree([written(row, 1) for row in rows])


@given(st.text(st.characters(min_codepoint=1, codec="utf-8"), max_size=40))
def test_request_keys_are_those_of_the_reference(request_id: str) -> None:
    columns, _, _ = decode([json.dumps({**PLAIN, "request_id": request_id}, ensure_ascii=False).encode()])
    assert columns.request_key.tolist() == [request_key(request_id)]
