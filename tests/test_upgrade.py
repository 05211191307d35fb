"""Databases of earlier versions: upgraded, every view readable, and the log goes on where it stopped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text

from storage.engine import connect, current_version, upgrade
from storage.names import SCHEMA_VERSION
from storage.views import VIEWS
from tests.build_database import DATA, HALF, MESSAGES
from tests.daemons import rows, totals
from tests.test_pipeline import ledger_for, pipeline_for, run_to_end

STORED = sorted(DATA.glob("database-*.gz"))


def restore(stored: Path, folder: Path, request: pytest.FixtureRequest) -> str:
    content = gzip.decompress(stored.read_bytes())
    if ".sqlite." in stored.name:
        (folder / "old.db").write_bytes(content)
        return f"sqlite:///{folder / 'old.db'}"
    url = str(request.getfixturevalue("postgres_database"))
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string()) as connection:
        connection.execute(content)
    return url


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.name)
def test_an_old_database_is_upgraded_read_and_gone_on_with(
    stored: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = restore(stored, tmp_path, request)
    version = stored.name.split("-")[1].split(".")[0]
    counts = json.loads((DATA / f"database-{version}.json").read_text())
    engine = connect(url)
    assert current_version(engine) == version
    upgrade(engine)
    assert current_version(engine) == SCHEMA_VERSION
    with engine.connect() as connection:
        for view in VIEWS:
            found = connection.execute(text(f"select * from {view}")).mappings().all()
            if view in counts:  # others came later, and show what the old tables hold already
                assert len(found) == counts[view], view
    assert min(counts[view] for view in ("window_history", "alert_history", "delivery_history")) > 0
    engine.dispose()
    before = totals(url)
    assert before["position"] == HALF
    ledger = ledger_for(url, "heir")
    run_to_end(*pipeline_for(ledger, MESSAGES))
    ledger.engine.dispose()
    assert totals(url)["records"] == len(MESSAGES)
    assert rows(url, "select count(*) as n from window_history")[0]["n"] == 2 * 60


def test_every_kind_of_database_is_kept() -> None:
    versions = {path.name.split(".")[0] for path in STORED}
    assert "database-0001" in versions
    for version in versions:
        assert {path.name.split(".")[1] for path in STORED if path.name.startswith(version)} == {
            "sqlite",
            "postgresql",
        }
