"""How long after the watermark a window is in the database and its webhook is received, live.

`python -m benchmarks.live` starts a broker (or takes KAFKA_BOOTSTRAP_SERVERS), `inferwatch run` as a process
with SQLite (--postgres: PostgreSQL), and a receiver. WATCHED series get a calm past; then --series series
send records at their event time, paced by the wall clock, and in every window another watched series fails.
Per window: from the moment at which the broker has the first record that moves the watermark past its end, to
the stored watermark (the commit that holds the window's rows) and to the webhook of its incident. In the
first window all other series are born. Wall times: they need a quiet machine; the CPU of the daemon is given
beside them.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rounds
from benchmarks.servers import broker_at, postgres_at
from tests.daemons import Daemon, rows, wait_for
from tests.receivers import Hook, hook

WINDOW_S, LATENESS_S, WATCHED, PAST_WINDOWS = 10, 1.0, 60, 240
PAST_TAKES = 6  # windows until the live part begins: the past has to be written and read by then
CONFIG = """
[source]
topics = ["{topic}"]
bootstrap_servers = "{bootstrap}"
group_id = "{topic}"
[window]
length_s = {window_s}
allowed_lateness_s = {lateness_s}
max_series = 200000
[detection]
group_by = []
[database]
url = "{database}"
[http]
enabled = false
[training]
enabled = false
[channels.audit]
url = "{webhook}"
secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
allow_private = true
events = ["incident.opened"]
"""


def record(series: int, at_ms: int, rng: np.random.Generator, *, failing: bool = False) -> bytes:
    latency = rng.lognormal(5.0, 0.2) * (20 if failing else 1)
    return json.dumps(
        {"timestamp": at_ms, "model": "live", "endpoint": f"s{series:06d}",
         "request_id": f"{rng.integers(1 << 62):x}",
         "latency_ms": round(latency, 2), "output_tokens": int(rng.lognormal(5, 0.3)) + 1,
         "status": 500 if failing else 200}
    ).encode()  # fmt: skip


class Passed:
    """When the watermark of the log passed the end of each window, as the producer saw it."""

    def __init__(self) -> None:
        self.at_s: dict[int, float] = {}  # window end in ms -> wall time
        self._lock = threading.Lock()

    def sent(self, mark_ms: int) -> None:
        end_ms = mark_ms // (1000 * WINDOW_S) * 1000 * WINDOW_S
        with self._lock:
            self.at_s.setdefault(end_ms, time.time())


def produce(bootstrap: str, topic: str, series: int, windows: int, passed: Passed, first_ms: int) -> None:
    """The past at once, then `windows` windows at their event time, two records per series and window.

    Raises AssertionError where the past took so long that the live part would begin as a backlog.
    """
    from kafka import KafkaProducer

    rng = np.random.default_rng(11)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, batch_size=1 << 16)
    step_ms = 1000 * WINDOW_S
    for past in range(PAST_WINDOWS):
        at_ms = first_ms - (PAST_WINDOWS - past) * step_ms
        for n in range(20 * WATCHED):
            at = at_ms + n * step_ms // (20 * WATCHED)
            producer.send(topic, record(n % WATCHED, at, rng), partition=0)
    producer.flush()
    assert time.time() * 1000 < first_ms, "the past took too long"
    for window in range(windows):
        begin_ms = first_ms + window * step_ms
        order, failing = rng.permutation(np.repeat(np.arange(series), 2)), window % WATCHED
        extra = rng.integers(0, WATCHED, 18 * WATCHED)
        whole = np.concatenate([order, extra])[rng.permutation(len(order) + len(extra))]
        for n, one in enumerate(whole.tolist()):
            at_ms = begin_ms + n * step_ms // len(whole)
            if (ahead_s := at_ms / 1000 - time.time()) > 0.002:
                time.sleep(ahead_s)
            sent = producer.send(topic, record(one, at_ms, rng, failing=one == failing), partition=0)
            mark_ms = at_ms - round(1000 * LATENESS_S)
            if mark_ms // step_ms * step_ms not in passed.at_s:
                sent.add_callback(lambda _, mark_ms=mark_ms: passed.sent(mark_ms))
    producer.flush()
    producer.close()


def watch_commits(database: str, stop: threading.Event, seen: dict[int, float]) -> None:
    """Window end in ms -> wall time at which the stored watermark was first found behind it."""
    step_ms = 1000 * WINDOW_S
    while not stop.wait(0.02):
        try:
            found = rows(database, "select watermark_ms from partitions")
        except Exception:  # the daemon has not made the tables yet
            continue
        now_s = time.time()
        for row in found:
            if row["watermark_ms"] is not None:
                closed_ms = (row["watermark_ms"] - round(1000 * LATENESS_S)) // step_ms * step_ms
                for end_ms in range(closed_ms, closed_ms - 20 * step_ms, -step_ms):
                    seen.setdefault(end_ms, now_s)


def arrivals(receiver: Hook) -> list[float]:
    """A script for the receiver that notes when each request comes."""
    times: list[float] = []

    def answer(handler: Any) -> None:
        times.append(time.time())
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    receiver.script = [answer]
    return times


def measure(
    bootstrap: str, topic: str, database: str, series: int, windows: int, folder: Path
) -> dict[str, Any]:
    passed, committed, stop = Passed(), dict[int, float](), threading.Event()
    step_ms = 1000 * WINDOW_S
    with hook() as receiver:
        times = arrivals(receiver)
        config = folder / "inferwatch.toml"
        config.write_text(
            CONFIG.format(topic=topic, bootstrap=bootstrap, window_s=WINDOW_S, lateness_s=LATENESS_S,
                          database=database, webhook=receiver.url)
        )  # fmt: skip
        watcher = threading.Thread(target=watch_commits, args=(database, stop, committed))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with Daemon(config, folder / "daemon.log") as daemon:
            wait_for("a claim", lambda: "partition_claimed" in daemon.log.read_text(), 300, daemon)
            watcher.start()
            first_ms = (int(time.time() * 1000) // step_ms + PAST_TAKES) * step_ms
            produce(bootstrap, topic, series, windows, passed, first_ms)
            time.sleep(10)
            daemon.stop(60)
        stop.set()
        watcher.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [first_ms + (w + 1) * step_ms for w in range(windows - 1)]
    counted = rows(
        database,
        "select window_end_ms, count(*) as n from windows "
        f"where window_start_ms >= {first_ms} group by window_end_ms",
    )
    right = {row["window_end_ms"]: row["n"] for row in counted}
    assert all(right.get(end) == series for end in ends), right
    # The worst over a window's rows: they are all in the commit that moves the watermark.
    stored = [committed[end] - passed.at_s[end] for end in ends]
    behind_s = max(passed.at_s[end] - end / 1000 - LATENESS_S for end in ends)
    return {"commit_s": stored, **webhooks(database, receiver, times, passed, first_ms),
            "daemon_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "producer_behind_s": behind_s, "windows": len(ends) * series}  # fmt: skip


def webhooks(
    database: str, receiver: Hook, times: list[float], passed: Passed, first_ms: int
) -> dict[str, Any]:
    """From the watermark to the receiver, for incidents that opened in the live part."""
    fired = {
        row["incident_id"]: row["window_end_ms"]
        for row in rows(
            database,
            "select l.incident_id, min(t.at_ms) as window_end_ms from alert_transitions t "
            "join incident_alerts l on l.alert_id = t.alert_id "
            f"where t.kind = 'fired' and t.at_ms > {first_ms} group by l.incident_id",
        )
    }
    found = []
    for (_, body), at_s in zip(receiver.requests, times, strict=True):
        told = json.dumps(json.loads(body))
        of_it = [end for incident, end in fired.items() if incident in told]
        found += [at_s - passed.at_s[end] for end in of_it if end in passed.at_s]
    return {"webhook_s": found, "incidents": len(fired)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL instead of SQLite")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with ExitStack() as stack:
        from tests import services

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bootstrap = stack.enter_context(broker_at())
        database = f"sqlite:///{folder}/live.db"
        if options.postgres:
            database = services.create_database(stack.enter_context(postgres_at()))
        topic = services.create_topic(bootstrap)
        found = measure(bootstrap, topic, database, options.series, options.windows, folder)
    print("| from the watermark to | number | median s | p99 s | largest s | first s |")
    print("|---|---|---|---|---|---|")
    for name in ("commit_s", "webhook_s"):
        values = found[name] or [float("nan")]
        figures = (np.median(values), np.percentile(values, 99), max(values), values[0])
        shown = " | ".join(f"{figure:.2f}" for figure in figures)
        print(f"| {name.removesuffix('_s')} | {len(found[name])} | {shown} |")
    print(f"CPU of the daemon: {found['daemon_cpu_s']:.1f} s, its start included; "
          f"the producer was at most {found['producer_behind_s']:.2f} s behind its clock")  # fmt: skip
    rounds.save(
        "live-postgresql" if options.postgres else "live",
        {"machine": rounds.machine(), "series": options.series, **found},
        options.out,
    )


if __name__ == "__main__":
    main()
