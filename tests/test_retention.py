"""What retention must leave alone: what open incidents were told, and states that may still be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from storage.engine import connect, upgrade
from storage.retention import purge
from tests.storage_kit import MINUTE_MS, fired, make_commit, make_ledger, make_series, make_windows, resolved

KEEP = {"keep_windows_ms": 10**9, "keep_rejected_ms": 10**9, "keep_deliveries_ms": 1_000}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'retention.db'}"
    else:
        url = request.getfixturevalue("postgres_database")
    engine = connect(url)
    upgrade(engine)
    yield engine
    engine.dispose()


def test_what_an_open_incident_was_told_stays_until_it_ends(engine: Engine) -> None:
    """Without it nobody would know that a receiver waits for the end, or what to tell it again."""
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    names = ["old/a", "new/b"]
    ended = [fired("old/a", 0), resolved("old/a", 0, 2 * MINUTE_MS)]
    ledger.commit(
        make_commit(
            claim, None, 10, windows=[make_windows(0, names)], series=[make_series(n) for n in names],
            transitions=[*ended, fired("new/b", 0)],
        )
    )  # fmt: skip
    with engine.begin() as connection:
        connection.execute(text("update deliveries set status = 'delivered', finished_at_ms = 5"))
    assert purge(engine, now_ms=10_000, **KEEP)["deliveries"] == 2
    with engine.connect() as connection:
        left = connection.execute(text("select event from deliveries")).scalars().all()
    assert left == ["incident.opened"]
    ledger.commit(make_commit(claim, 10, 12, transitions=[resolved("new/b", 0, 11 * MINUTE_MS)]))
    with engine.begin() as connection:
        connection.execute(text("update deliveries set status = 'delivered', finished_at_ms = 5"))
    assert purge(engine, now_ms=10_000, **KEEP)["deliveries"] == 2


def test_states_of_parked_series_go_when_nobody_can_ask_for_them(engine: Engine) -> None:
    """`make_series` has its newest record at 30 s; the watermark of a commit is `next_offset` minutes."""
    ledger = make_ledger(engine)
    for partition, name in enumerate(("m/behind", "m/ahead")):
        claim = ledger.claim("logs", partition, now_ms=0)
        ledger.commit(
            make_commit(claim, None, 10, parked=[make_series(name)], series=[make_series(f"{name}-live")])
        )
        if name == "m/ahead":
            ledger.commit(make_commit(claim, 10, 100))
    assert purge(engine, now_ms=10**12, **KEEP, keep_parked_ms=100 * MINUTE_MS)["parked_states"] == 0
    assert purge(engine, now_ms=10**12, **KEEP, keep_parked_ms=50 * MINUTE_MS)["parked_states"] == 1
    assert ledger.load_parked("logs", 1, ["m/ahead"]) == []
    assert [row.series for row in ledger.load_parked("logs", 0, ["m/behind"])] == ["m/behind"]
    assert [row.detector_state for row in ledger.claim("logs", 1, now_ms=0).series] == [b"detector"]
