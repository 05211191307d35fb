"""Makes the small databases of this schema version that later versions must be able to upgrade.

    python -m tests.build_database      # before a release that changes the schema

Writes tests/data/database-VERSION.sqlite.gz (the file), .postgresql.gz (an SQL dump) and .json (how many rows
every view shows). The log is half read: whoever opens the database again goes on with the other half.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sqlalchemy import make_url

from monitor.config import ChannelSettings, Settings
from monitor.incidents import make_fold
from storage.names import SCHEMA_VERSION
from storage.outbox import Outbox
from storage.views import VIEWS
from tests import services
from tests.daemons import rows
from tests.logs import lines, with_bad_lines
from tests.test_pipeline import ledger_for, pipeline_for, run_to_end

DATA = Path(__file__).parent / "data"
MESSAGES = with_bad_lines(lines(services=2, minutes=60, per_minute=4, fault_at=20))
MESSAGES[300:300] = [line.replace(b'"req-', b'"late-') for line in MESSAGES[280:282]]  # amend windows
HALF = 330


def fill(url: str) -> dict[str, int]:
    """The first half of the log, with an incident, notifications, rejects, late records; rows per view."""
    channel = ChannelSettings(url="https://example.org/hook", secret_env="HOOK")
    ledger = ledger_for(url, "builder")
    ledger.fold = make_fold(Settings(channels={"ops": channel}))
    pipeline, clock = pipeline_for(ledger, MESSAGES[:HALF])
    run_to_end(pipeline, clock)
    pipeline.leave()
    outbox = Outbox(ledger.engine)
    for sent in outbox.claim("builder", clock.now_ms(), 1, 60_000):
        outbox.delivered(sent.delivery_id, "builder", clock.now_ms())
    ledger.engine.dispose()
    return {view: int(rows(url, f"select count(*) as n from {view}")[0]["n"]) for view in VIEWS}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.db"
        counts = fill(f"sqlite:///{file}")
        subprocess.run(["sqlite3", str(file), "vacuum"], check=False, capture_output=True)
        assert not Path(f"{file}-wal").exists() or Path(f"{file}-wal").stat().st_size == 0
        written = {"sqlite": file.read_bytes()}
        server = services.Postgres().start()
        url = services.create_database(server.url)
        assert fill(url) == counts
        dump = [services.need("pg_dump", "postgresql", services.postgres_dirs()), "--inserts", "--no-owner"]
        plain = make_url(url).set(drivername="postgresql").render_as_string()
        text = subprocess.run([*dump, plain], check=True, capture_output=True, text=True).stdout
        kept = (line for line in text.splitlines() if not line.startswith(("\\", "SET transaction_timeout")))
        written["postgresql"] = "\n".join(kept).encode()
        server.stop()
    for kind, content in written.items():
        path = DATA / f"database-{SCHEMA_VERSION}.{kind}.gz"
        path.write_bytes(gzip.compress(content, mtime=0))
        print(path.name, path.stat().st_size, "bytes")
    (DATA / f"database-{SCHEMA_VERSION}.json").write_text(json.dumps(counts, indent=1) + "\n")
    print(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
