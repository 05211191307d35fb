"""Silences and maintenance windows, as people make and read them: when they hold, in words, at a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import recurrence
from monitor.output import parse_time
from monitor.silences import NEVER_ENDS_MS, Standing, Wanted, again_words, never_ends, standing, wanted
from storage import queries
from storage.engine import connect, upgrade
from tests.test_cli import call

__all__ = ["call"]  # the fixture
Call = Callable[..., tuple[int, str, str]]
WEEKLY = {"days": ["tue", "thu"], "start": "22:00", "duration": "4h", "time_zone": "Europe/Berlin"}
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def ms(text: str) -> int:
    return parse_time(text, 0)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-01-05T12:00:00Z", Standing("waits", ms("2026-01-06T21:00:00Z"))),  # Monday, before its start
        ("2026-01-06T20:59:59Z", Standing("waits", ms("2026-01-06T21:00:00Z"))),
        ("2026-01-06T21:00:00Z", Standing("holds")),
        ("2026-01-07T00:59:59Z", Standing("holds")),  # past midnight
        ("2026-01-07T01:00:00Z", Standing("waits", ms("2026-01-08T21:00:00Z"))),
        ("2026-01-08T22:30:00Z", Standing("over")),  # inside a window, behind its end
    ],
)
def test_a_recurring_silence_says_when_it_holds_next(now: str, expected: Standing) -> None:
    rule = recurrence.parse(WEEKLY).to_dict()
    silence = Wanted(ms("2026-01-06T00:00:00Z"), ms("2026-01-08T22:00:00Z"), rule)
    assert standing(silence, ms(now)) == expected


def test_a_plain_silence_waits_holds_and_is_over() -> None:
    silence = Wanted(1_000, 2_000)
    told = [standing(silence, now_ms) for now_ms in (999, 1_000, 1_999, 2_000)]
    assert told == [Standing("waits", 1_000), Standing("holds"), Standing("holds"), Standing("over")]


@given(
    st.lists(st.sampled_from(recurrence.DAYS), max_size=7, unique=True),
    st.integers(0, 23),
    st.integers(1, 72),
    st.integers(0, 400 * 24),
    st.one_of(st.none(), st.integers(1, 30 * 24)),
)
def test_what_waits_holds_at_its_next_start_and_not_before(
    days: list[str], hour: int, length_h: int, now_h: int, lasts_h: int | None
) -> None:
    data = {**WEEKLY, "days": days, "start": f"{hour:02}:00", "duration": f"{length_h}h"}
    rule = recurrence.parse(data)
    now_ms = ms("2026-01-01T00:00:00Z") + now_h * HOUR_MS
    end_ms = NEVER_ENDS_MS if lasts_h is None else now_ms + lasts_h * HOUR_MS
    found = standing(Wanted(0, end_ms, rule.to_dict()), now_ms)
    assert (found.state == "holds") == recurrence.covers(rule, now_ms)
    limit_ms = min(end_ms, now_ms + 8 * DAY_MS)
    held = [at for at in range(now_ms, limit_ms, HOUR_MS // 2) if recurrence.covers(rule, at)]
    if found.state == "waits":
        assert found.next_ms == held[0]
    assert (found.state == "over") == (not held)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (WEEKLY, "tue, thu at 22:00 for 4h, Europe/Berlin"),
        ({"days": [], "start": "03:30", "duration": "90m"}, "every day at 03:30 for 1h 30m, UTC"),
        (None, None),
    ],
)
def test_a_recurrence_in_words(rule: dict[str, Any] | None, words: str | None) -> None:
    assert again_words(None if rule is None else recurrence.parse(rule).to_dict()) == words


def test_an_end_is_given_once_and_lies_behind_the_start() -> None:
    for given_ in ({}, {"length": "2h", "ends_at": "2030-01-01T00:00:00Z"}, {"length": "0h"}, {"again": {}}):
        with pytest.raises(ValueError, match=r"give|longer|recurrence"):
            wanted(0, **given_)
    assert wanted(5, again=WEEKLY).ends_at_ms == NEVER_ENDS_MS
    assert never_ends(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))


# ------------------------------------------------------------------ at a terminal


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path / 'silences.db'}"
    engine = connect(made)
    upgrade(engine)
    engine.dispose()
    return made


def test_weekly_maintenance_is_added_and_listed(call: Call, url: str) -> None:
    start = ("--start", "2026-01-01T00:00:00Z", "--comment", "patch night", "--by", "ada", "--database", url)
    again = ("--every", "thu,tue", "--at", "22:00", "--for", "4h", "--time-zone", "Europe/Berlin")
    code, out, _ = call("silences", "add", "model=chat", *again, *start)
    assert code == 0 and out.endswith(" tue, thu at 22:00 for 4h, Europe/Berlin, for good\n")
    code, out, _ = call(
        *("silences", "add", "model=rank", "--every", "day", "--at", "03:00"),
        *("--until", "2026-02-01T00:00:00Z", *start, "--json"),
    )
    made = json.loads(out)
    assert (made["ends_at"], made["recurrence"]["duration"]) == ("2026-02-01T00:00:00Z", "7200s")
    engine = connect(url)
    assert {row["silence_id"]: row["recurrence"] for row in queries.silences(engine)}[made["silence_id"]] == {
        "days": list(recurrence.DAYS),
        "start": "03:00",
        "duration": "7200s",
        "time_zone": "UTC",
    }
    engine.dispose()
    header, *lines = call("silences", "list", "--database", url)[1].splitlines()
    rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    assert {row["only"]: row["ends_at"] for row in rows} == {
        "tue, thu at 22:00 for 4h, Europe/Berlin": "-",
        "every day at 03:00 for 2h, UTC": "2026-02-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--every", "tue"], "say --at"),
        (["--at", "22:00"], "they need --every"),
        (["--every", "someday", "--at", "22:00"], "days are of mon"),
        (["--every", "tue", "--at", "10 pm"], "start is a local time"),
        (["--every", "tue", "--at", "22:00", "--time-zone", "Middle/Earth"], "is no time zone"),
        (["--every", "tue", "--at", "22:00", "--for", "8d"], "duration lies between"),
        (["--for", "2h", "--until", "2030-01-01T00:00:00Z"], "give one of them"),
        (["--until", "1999-01-01T00:00:00Z"], "ends behind its start"),
    ],
)
def test_maintenance_that_makes_no_sense_is_refused_before_the_database_is_looked_at(
    call: Call, words: list[str], said: str
) -> None:
    code, _, err = call("silences", "add", "model=a", *words, "--database", "sqlite:///nowhere.db")
    assert code == 2 and said in " ".join(err.replace("│", " ").split())
