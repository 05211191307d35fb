"""What commands print."""

from __future__ import annotations

import json
import logging
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.clock import rfc3339
from monitor.logs import OncePerMinute
from monitor.output import cell, clean, number, parse_duration_ms, parse_time, plain, print_json, print_rows

NOW_MS = 1_772_409_600_000


@given(st.text())
def test_printed_text_holds_no_control_or_invisible_character(text: str) -> None:
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in clean(text))


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_visible_text_is_printed_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_an_escape_sequence_in_a_model_name_is_spelled_out() -> None:
    assert clean("gpt\x1b[2J\u202e") == "gpt\\x1b[2J\\u202e"


@given(st.integers(0, 4_102_444_800_000))
def test_a_printed_time_is_read_back(ms: int) -> None:
    assert parse_time(rfc3339(ms), NOW_MS) == ms


@pytest.mark.parametrize(
    ("text", "ago_ms"), [("24h", 86_400_000), ("7d", 604_800_000), ("90m", 5_400_000), ("30s", 30_000)]
)
def test_a_length_of_time_means_that_long_ago(text: str, ago_ms: int) -> None:
    assert parse_time(text, NOW_MS) == NOW_MS - ago_ms
    assert parse_duration_ms(text) == ago_ms


def test_a_time_with_an_offset_and_one_without() -> None:
    assert parse_time("2026-03-02T01:00:00+01:00", 0) == parse_time("2026-03-02T00:00:00", 0) == NOW_MS


@given(st.text(max_size=20))
def test_other_text_is_a_time_or_a_clear_error(text: str) -> None:
    try:
        parsed = parse_time(text, NOW_MS)
    except ValueError as error:
        parsed, said = None, str(error)
    assert isinstance(parsed, int) or "24h" in said


@given(st.floats(-1e300, 1e300) | st.sampled_from([float("nan"), float("inf")]))
def test_numbers_are_short_and_close(value: float) -> None:
    shown = number(value)
    assert len(shown) <= 12
    if shown != "-":
        assert float(shown) == pytest.approx(value, rel=6e-3, abs=1e-9)


def test_json_has_no_nan_and_only_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"score": float("nan"), "at": datetime(2026, 3, 2, tzinfo=UTC), "model": "modèle\x9b"}])
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == [{"score": None, "at": "2026-03-02T00:00:00Z", "model": "modèle\x9b"}]


def test_rows_in_a_pipe_are_tab_separated_and_nothing_is_said_on_stderr_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rows([{"a": 1.25, "b": "x\ty"}, {"a": None, "b": [1, 2]}], ("a", "b"), empty="nothing")
    assert capsys.readouterr().out == "a\tb\n1.250\tx\\x09y\n-\t1, 2\n"
    print_rows([], ("a",), empty="nothing")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing\n")


def test_cells() -> None:
    assert [cell(v) for v in (True, False, None, "", 3, {"a": 1})] == ["yes", "no", "-", "-", "3", '{"a": 1}']
    assert plain({"x": (float("inf"), 1)}) == {"x": [None, 1]}


def test_the_kafka_client_says_each_kind_of_thing_once_a_minute() -> None:
    now_s = [0.0]
    quiet = OncePerMinute(lambda: now_s[0])

    def passes(name: str, message: str) -> bool:
        return quiet.filter(logging.LogRecord(name, logging.ERROR, "", 0, message, (), None))

    assert passes("kafka.net", "connection failed: %s") and passes("kafka.net", "bootstrap failed")
    assert not passes("kafka.net", "connection failed: %s")
    assert passes("kafkaesque", "x") and passes("kafkaesque", "x")
    now_s[0] = 60.0
    assert passes("kafka.net", "connection failed: %s")
