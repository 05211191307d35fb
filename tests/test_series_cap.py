"""The cap on live series: who makes room, what overflows, and that neither cuts nor deaths change it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.admission import overflow_name
from monitor.claims import Parts
from monitor.config import Settings, WindowSettings
from monitor.models import FixedModel
from monitor.pipeline import Pipeline
from monitor.series import SeriesInfo
from monitor.sources.batches import cut, pack
from monitor.sources.memory import MemorySource
from monitor.windows import (
    Added,
    AmendedWindow,
    CapReached,
    ClosedWindows,
    ExpiredSeries,
    ParkedSeries,
    PartitionWindows,
    ReturnedSeries,
    Step,
)
from storage.facts import Facts
from tests import services, test_windows
from tests.daemons import rows, totals
from tests.logs import START_MS, lines
from tests.scorers import PlainScorer
from tests.test_pipeline import KEY, YEAR_MS, ManualClock, ledger_for, run_to_end
from tests.window_oracle import PARTITION, Record, columns

CAP = WindowSettings(length_s=5, allowed_lateness_s=2, revision_horizon_s=12, empty_for_s=200, max_series=2)
OVERFLOW = overflow_name(PARTITION)[0]


class Store(test_windows.Store):
    """What the database would hold, parked series too."""

    def __init__(self) -> None:
        super().__init__()
        self.parked: dict[str, SeriesInfo] = {}

    def commit(self, windows: PartitionWindows, drafted: list[Added], next_offset: int) -> None:
        super().commit(windows, drafted, next_offset)
        self.series |= {info.series: info for info in windows.unsaved()}
        windows.saved()

    def _apply(self, step: Step) -> None:
        if isinstance(step, ClosedWindows | AmendedWindow | ExpiredSeries):
            super()._apply(step)
        elif isinstance(step, ParkedSeries):
            self.parked |= {info.series: self.series.pop(info.series, info) for info in step.infos}
        elif isinstance(step, ReturnedSeries):
            self.series |= {info.series: self.parked.pop(info.series) for info in step.infos}

    def open(self, drafted: list[Added], window: WindowSettings = CAP, **more: Any) -> PartitionWindows:
        def load_parked(names: list[str]) -> list[SeriesInfo]:
            parked = dict(self.parked)
            for step in (step for added in drafted for step in added.steps):
                if isinstance(step, ParkedSeries | ReturnedSeries):
                    gone = isinstance(step, ReturnedSeries)
                    parked |= {info.series: info for info in step.infos}
                    parked = {n: i for n, i in parked.items() if not gone or i not in step.infos}
            return [parked[name] for name in names if name in parked]

        def load_sketch(series: str, start_ms: int) -> bytes | None:
            for step in (step for added in reversed(drafted) for step in reversed(added.steps)):
                if isinstance(step, AmendedWindow | ClosedWindows) and step.batch.window_start_ms == start_ms:
                    if series in step.batch.series and isinstance(step, AmendedWindow):
                        return step.sketch
                    if series in step.batch.series and isinstance(step, ClosedWindows):
                        return step.sketches[step.batch.series.index(series)]
            return self.sketches.get((series, start_ms))

        return PartitionWindows(
            window, ["model", "endpoint"], PARTITION, watermark_ms=self.watermark_ms,
            next_offset=self.next_offset, close_offset=self.close_offset, known=list(self.series.values()),
            load_sketch=load_sketch, load_parked=load_parked, **more,
        )  # fmt: skip


def dump(step: Step) -> Any:
    if isinstance(step, ClosedWindows | AmendedWindow | ExpiredSeries):
        return _dump(step)
    return repr(step)


_dump = test_windows.dump


def run(records: list[Record], cuts: list[tuple[int, str]], window: WindowSettings = CAP) -> Store:
    store, drafted = Store(), list[Added]()
    windows, at = store.open(drafted, window), 0
    for place, what in [*sorted((c, w) for c, w in cuts if c < len(records)), (len(records), "go on")]:
        if at < place:
            drafted.append(windows.add(columns(records[at:place], at)))
            at = place
        if what == "commit":
            store.commit(windows, drafted, at)
            drafted.clear()
        elif what == "die":
            drafted.clear()
            windows, at = store.open(drafted, window), store.restart_offset
    if at < len(records):
        drafted.append(windows.add(columns(records[at:], at)))
    drafted.append(windows.finish())
    store.commit(windows, drafted, len(records))
    return store


@pytest.fixture(autouse=True)
def _dumps_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_windows, "dump", dump)


@st.composite
def crowded_logs(draw: st.DrawFn) -> list[Record]:
    rng, now_ms = random.Random(draw(st.integers(0, 1 << 16))), 0
    records = []
    parts = st.tuples(
        st.sampled_from((0, 0, 100, 1_000, 2_500, 5_000, 9_000, 31_000, 60_000)),
        st.sampled_from((0, 0, 0, 500, 4_000, 11_000)),
        st.sampled_from("abcdef"),
    )
    for leap_ms, behind_ms, model in draw(st.lists(parts, max_size=40)):
        now_ms += leap_ms
        version = rng.choice([None, "1", "2"])
        number = rng.choice([None, 1, 2, 3])
        records.append(
            Record(at_ms=now_ms - behind_ms, model=model, model_version=version, request_id=number)
        )
    return records


@settings(max_examples=80, deadline=None)
@given(
    crowded_logs(),
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["go on", "commit", "die"])), max_size=10),
)
def test_places_depend_neither_on_cuts_nor_on_deaths(
    records: list[Record], cuts: list[tuple[int, str]]
) -> None:
    whole, cut_up = run(records, []), run(records, cuts)
    assert cut_up.steps == whole.steps
    assert cut_up.counts.tolist() == whole.counts.tolist()


def record_count(store: Store) -> float:
    """Of all windows as they are in the end."""
    counts: dict[tuple[int, str], float] = {}
    for step in store.steps:
        if isinstance(step, tuple) and step[0] in ("closed", "amended"):
            values = np.frombuffer(step[3]).reshape(len(step[2]), -1)
            counts |= {(step[1], name): n for name, n in zip(step[2], values[:, 0], strict=True)}
    return sum(counts.values())


@settings(max_examples=30, deadline=None)
@given(crowded_logs())
def test_no_record_is_lost_for_want_of_a_place(records: list[Record]) -> None:
    records = [Record(r.at_ms, r.model) for r in records]
    capped = run(records, [])
    free = run(records, [], CAP.model_copy(update={"max_series": 100}))
    assert capped.counts.tolist() == free.counts.tolist()
    assert record_count(capped) == record_count(free)


def minute(n: int, *models: str) -> list[Record]:
    return [Record(at_ms=n * 5_000 + i, model=model) for i, model in enumerate(models)]


def test_a_silent_series_makes_room_and_comes_back_as_it_was() -> None:
    records = [r for n in range(4) for r in minute(n, "old", "busy")]
    records += [r for n in range(4, 14) for r in minute(n, "busy")]
    records += [*minute(14, "busy", "new"), *minute(15, "busy", "new"), *minute(30, "busy", "old")]
    store = run(records, [])
    moved = [step for step in store.steps if isinstance(step, str)]
    assert [step.split("(")[0] for step in moved] == ["ParkedSeries", "ParkedSeries", "ReturnedSeries"]
    assert "old/e" in moved[0] and "new/e" in moved[1] and "old/e" in moved[2]
    assert store.series["old/e"].first_seen_ms == 0
    assert set(store.series) == {"old/e", "busy/e"}


def test_a_crowd_is_counted_together_and_said_once() -> None:
    crowd = [f"stranger-{i}" for i in range(50)]
    records = [*minute(0, "a", "b"), *minute(1, "a", "b", *crowd), *minute(2, "a", "b", *crowd)]
    store = run(records, [])
    assert [step for step in store.steps if isinstance(step, str)] == [repr(CapReached(0, 2, OVERFLOW))]
    counts = {
        name: values[0]
        for step in store.steps
        if step[0] == "closed" and step[1] == 5_000
        for name, values in zip(step[2], np.frombuffer(step[3]).reshape(len(step[2]), -1), strict=True)
    }
    assert counts == {"a/e": 1, "b/e": 1, OVERFLOW: 50}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_crowd_changes_nothing_for_those_who_were_there(
    kind: str, tmp_path: Any, request: pytest.FixtureRequest
) -> None:
    real = lines(services=2, minutes=60, per_minute=6, fault_at=40)
    found = {}
    for crowd in (0, 400):
        url = f"sqlite:///{tmp_path / f'{crowd}.db'}"
        if kind == "postgresql":
            url = services.create_database(request.getfixturevalue("postgres_url"))
        messages = list(real)
        for i in range(crowd):
            place = len(messages) * (crowd - i) // crowd - 1
            stranger = messages[place].replace(b"svc-", b"stranger-%d-" % i)
            messages.insert(place + 1, stranger.replace(b'"req-', b'"req-%d-' % i))
        whole = pack(KEY, range(len(messages)), messages)
        source = MemorySource([cut(whole, i, i + 50) for i in range(0, len(messages), 50)])
        clock, ledger = ManualClock(START_MS + YEAR_MS // 12), ledger_for(url)
        limited = Settings(window=WindowSettings(max_series=12))
        run_to_end(
            Pipeline(limited, Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(PlainScorer()))),
            clock,
        )
        ledger.engine.dispose()
        assert totals(url)["accepted"] == len(messages)
        statement = "select * from window_history where series like 'm-small/svc-_' order by 1, 4"
        found[crowd] = rows(url, statement)
    assert found[400] == found[0] and len(found[0]) == 120
    assert rows(url, "select count(*) as n from series where live")[0]["n"] <= 13
    told = [
        row["summary"] for row in rows(url, "select summary from alerts where series = 'source:memory/0'")
    ]
    assert len(told) == 1 and "more than 12 live series" in told[0]
    spread = rows(url, "select sum(request_count) as n from window_history")[0]["n"]
    assert spread == len(messages)
