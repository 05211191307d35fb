"""How the daemon starts and ends: warm before it owns anything, in order if it can, in time at any rate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from monitor.daemon import EXIT_FORCED
from tests.daemons import rows

HANGS = """
import sys, threading
from monitor import daemon, logs
from monitor.claims import Parts
from monitor.clock import SystemClock
from monitor.config import Settings
from monitor.models import FixedModel
from monitor.pipeline import Pipeline
from monitor.sources.memory import MemorySource
from storage.facts import Facts
from tests.scorers import PlainScorer
from tests.test_pipeline import ledger_for

logs.configure("info")
daemon.STOP_WITHIN_S = 1.2
ledger, stop = ledger_for(sys.argv[1], "hanging"), daemon.Stop()
ledger.claim("topic", 0, now_ms=0)
parts = Parts(MemorySource(), ledger, Facts(ledger.engine), SystemClock(), FixedModel(PlainScorer()))
stop.pipeline = Pipeline(Settings(), parts)

def poll_that_hangs():
    threading.Event().wait()

print("ready", flush=True)
poll_that_hangs()
"""

WARM = """
import sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from monitor.config import Settings
from monitor.models import load_scorer, FixedModel
from monitor.warming import warm_up
from tests import test_pipeline
from tests.logs import lines

def compiled():
    return {
        f"{module.__name__}.{name}": len(found.overloads)
        for module in list(sys.modules.values())
        if module.__name__.startswith(("monitor", "detectors"))
        for name, found in vars(module).items()
        if isinstance(found, Dispatcher)
    }

scorer = load_scorer(Settings(), None)
warm_up(Settings(), scorer)
before, imported = compiled(), set(sys.modules)
log = lines(services=2, minutes=120, per_minute=8, fault_at=100)
log[600:600] = log[300:310]  # repeated, late
log[900:900] = [line.replace(b"req-", b"late-") for line in log[700:705]]
ledger = test_pipeline.ledger_for(sys.argv[1])
pipeline, clock = test_pipeline.pipeline_for(ledger, log)
object.__setattr__(pipeline.parts, "models", FixedModel(scorer))
test_pipeline.run_to_end(pipeline, clock)
assert pipeline.windows_closed > 200
print(len(before) > 30)
print({name: n for name, n in compiled().items() if n != before.get(name)})
print([name for name in set(sys.modules) - imported if name.split(".")[0] in ("detectors", "numba", "torch")])
"""


def test_an_end_that_is_forced_says_where_it_hung_and_gives_the_partitions_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hangs.db'}"
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert [row["owner"] for row in rows(url, "select owner from partitions")] == ["hanging"]
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_FORCED
    assert '"event": "stop_forced"' in said and "poll_that_hangs" in said
    assert [row["owner"] for row in rows(url, "select owner from partitions")] == [None]


def test_a_daemon_that_has_warmed_up_compiles_nothing_more(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'warm.db'}"
    done = subprocess.run([sys.executable, "-c", WARM, url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-3:] == ["True", "{}", "[]"]
