"""A flood of series that are seen once: memory stays under the cap and the real series do not notice.

    python benchmarks/crowd.py [--series 100000] [--max-series 10000] [--real 5]

Three runs over SQLite, each in a process of its own and with the shipped detectors: the real series alone,
with the crowd under the cap, and (with --uncapped) with a place for everybody. Prints peak memory, and
exits 1 if a row of a real series differs or a record is not accounted for. The long form: --series 1000000.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.daemons import rows, totals

MINUTES, PER_MINUTE, BATCH = 120, 12, 5_000
REAL = "select * from window_history where model = 'real' order by series, window_start"


def messages(real: int, strangers: int) -> Iterator[bytes]:
    """Minute by minute: the real series, and a share of the strangers between them."""
    from tests.logs import START_MS

    made = 0
    for minute in range(MINUTES):
        at_ms = START_MS + minute * 60_000
        for i in range(PER_MINUTE * real):
            yield json.dumps(
                {"timestamp": at_ms + i * 59_000 // (PER_MINUTE * real), "model": "real",
                 "endpoint": f"svc-{i % real}", "latency_ms": 100 + (minute * 7 + i * 13) % 50,
                 "status": 500 if minute > 90 and i % real == 0 else 200}
            ).encode()  # fmt: skip
            upto = strangers * (minute * PER_MINUTE * real + i + 1) // (MINUTES * PER_MINUTE * real)
            for n in range(made, upto):
                yield (
                    b'{"timestamp": %d, "model": "stranger", "endpoint": "e-%d", "latency_ms": 5}'
                    % (at_ms + i * 59_000 // (PER_MINUTE * real), n)
                )
            made = upto


def one_run(database: str, real: int, strangers: int, max_series: int) -> None:
    """In a process of its own: prints what it took as JSON."""
    from monitor.claims import Parts
    from monitor.clock import ManualClock
    from monitor.config import Settings, WindowSettings
    from monitor.models import FixedModel, load_scorer
    from monitor.pipeline import Pipeline
    from monitor.sources.base import Partition
    from monitor.sources.batches import pack
    from monitor.sources.memory import MemorySource
    from storage.facts import Facts
    from tests.logs import START_MS
    from tests.test_pipeline import ledger_for

    settings = Settings(window=WindowSettings(max_series=max_series))
    ledger, clock = ledger_for(database), ManualClock(START_MS + 86_400_000)
    key, source = Partition("crowd", 0), MemorySource(bounded=False)
    scorer = load_scorer(settings, None)
    pipeline = Pipeline(settings, Parts(source, ledger, Facts(ledger.engine), clock, FixedModel(scorer)))
    started_s, offset, batch, most = time.monotonic(), 0, list[bytes](), 0

    def turn() -> None:
        nonlocal offset, batch, most
        source._logs.get(key) and source._logs[key].batches.clear()
        source.add(pack(key, range(offset, offset + len(batch)), batch))
        if key in source._logs:
            source._logs[key].batch = 0
        offset, batch = offset + len(batch), []
        for _ in range(3):
            pipeline.turn(0.0)
            clock.advance(1_100)
        most = max(most, sum(len(p.states) for p in pipeline.owned.values()))

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for message in messages(real, strangers):
        batch.append(message)
        if len(batch) >= BATCH:
            turn()
    turn()
    assert pipeline.leave()
    print(
        json.dumps(
            {
                "records": offset,
                "seconds": round(time.monotonic() - started_s, 1),
                "start_mib": before_kb >> 10,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "live_series_at_most": most,
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--max-series", type=int, default=10_000)
    parser.add_argument("--real", type=int, default=5)
    parser.add_argument("--uncapped", action="store_true", help="also without a cap")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        one_run(options.run[0], options.real, int(options.run[1]), int(options.run[2]))
        return 0
    runs = [
        ("the real series alone", 0, options.max_series),
        ("with the crowd", options.series, options.max_series),
    ]
    if options.uncapped:
        runs.append(("with the crowd, no cap", options.series, 1_000_000))
    taken, kept = {}, True
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, strangers, cap) in enumerate(runs):
            url = f"sqlite:///{folder}/{i}.db"
            arguments = ["--real", str(options.real), "--run", url, str(strangers), str(cap)]
            done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
            found = json.loads(done.stdout.splitlines()[-1])
            found["accepted"] = totals(url)["accepted"]
            found["in_windows"] = int(rows(url, "select sum(request_count) as n from window_history")[0]["n"])
            taken[name] = rows(url, REAL)
            size_mib = Path(url.removeprefix("sqlite:///")).stat().st_size >> 20
            print(f"{name:24} {found} database {size_mib} MiB", flush=True)
            kept &= found["accepted"] == found["records"]
            if cap <= options.max_series:
                kept &= found["live_series_at_most"] <= cap + 1
    alone, crowded = taken["the real series alone"], taken["with the crowd"]
    same = alone == crowded
    print(f"windows of the real series: {len(alone):,}, {'equal' if same else 'DIFFERENT'}")
    return 0 if same and kept else 1


if __name__ == "__main__":
    sys.exit(main())
