"""A small database as a daemon leaves it, made by the ledger and the real fold."""

from __future__ import annotations

import tempfile
from functools import cache

from monitor.config import ChannelSettings, Settings
from monitor.incidents import make_fold
from storage import queries
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.types import RejectedRow
from tests.storage_kit import MINUTE_MS, fired, make_commit, make_series, make_windows, resolved

HOSTILE = "evil<script>alert(1)</script>\x1b[2J/a"
CALM = "chat/b"
OVER = "rank/search"


def populate(url: str) -> None:
    """Three series: one broken and hostile by name, one calm, one whose incident has ended."""
    channel = ChannelSettings(url="http://127.0.0.1:9/hook", allow_private=True)
    settings = Settings(channels={"oncall": channel})
    engine = connect(url)
    try:
        upgrade(engine)
        ledger = Ledger(
            engine, fold=make_fold(settings), owner="test", revision_horizon_ms=900_000, reopen_ms=1_800_000
        )
        names = [CALM, HOSTILE, OVER]
        claim = ledger.claim("logs", 0, now_ms=1)
        ledger.commit(
            make_commit(
                claim,
                None,
                10,
                accepted=9,
                rejected=1,
                windows=[make_windows(start, names) for start in (0, MINUTE_MS, 2 * MINUTE_MS)],
                series=[make_series(name) for name in names],
                rejected_rows=[RejectedRow(4, "not_json", "{", 5)],
                transitions=[fired(OVER, 0), resolved(OVER, 0, 2 * MINUTE_MS), fired(HOSTILE, 3 * MINUTE_MS)],
            )
        )
        ledger.finish("logs", 0, claim.epoch, now_ms=2)
    finally:
        engine.dispose()


@cache
def newest_incident() -> str:
    """The id of the newest incident that `populate` stores; it is always the same."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/stored.db"
        populate(url)
        engine = connect(url)
        found: str = queries.incidents(engine, limit=1)[0]["incident_id"]
        engine.dispose()
        return found
