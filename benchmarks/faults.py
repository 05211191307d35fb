"""Faults one by one, each against a run that nothing disturbed: a table of promises and counts.

    python benchmarks/faults.py boundaries [--every 1] [--postgres]
                                                         a death at every statement and commit of the ledger,
                                                         and a commit whose acknowledgement is lost
    python benchmarks/faults.py disk                     a disk that is full for a while
    python benchmarks/faults.py clock                    a clock that jumps a day ahead and back at every look
    python benchmarks/faults.py fuzz [--records 1000000] [--postgres] [--through-broker 20000]
                              [--bombs 30] [--corrupt 30]
                                                         mutated records of every kind; some of them again
                                                         through a broker, among batches that cannot be read
    python benchmarks/faults.py models [--files 500]     damaged model files
    python benchmarks/faults.py receiver [--down-s 600]  webhook receivers that misbehave, and kills between
                                                         sending and marking
    python benchmarks/faults.py lag [--down-s 600]       does the reader of a log fall behind meanwhile?

Exits 1 if a promise is broken. What needs a fleet or a broker is in benchmarks/chaos.py and restart.py; the
flood of series in benchmarks/crowd.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import event

from monitor import logs
from monitor.partition import OwnedPartition
from monitor.pipeline import Pipeline
from monitor.sources.base import Partition
from monitor.sources.batches import pack
from monitor.sources.memory import MemorySource
from tests import services
from tests import test_pipeline as kit
from tests.daemons import rows, snapshot, totals
from tests.logs import BAD_LINES, START_MS, lines

KEY = Partition("memory", 0)
DAY_MS = 86_400_000
FUZZED_MS = 3_600_000  # event time of the log that is mutated
Row = tuple[str, str, bool]  # promise, count, kept


@contextlib.contextmanager
def databases(folder: Path, *, postgres: bool) -> Iterator[Callable[[], str]]:
    """Gives the URL of one empty database after the other, each with its tables made; the one before goes."""
    if not postgres:

        def file() -> str:
            for left in folder.glob("one.db*"):
                left.unlink()
            return f"sqlite:///{folder / 'one.db'}"

        yield file
        return
    server, before = services.Postgres().start(), ""
    try:
        template = services.create_database(server.url)
        kit.ledger_for(template).engine.dispose()

        def copy() -> str:
            nonlocal before
            if before:
                services.drop_database(server.url, before)
            before = services.create_database(server.url, template.rpartition("/")[2])
            return before

        yield copy
    finally:
        server.stop()


def undisturbed(folder: Path, messages: list[bytes], url: str = "") -> tuple[str, int]:
    """The database of a run without faults, and how many statements it took."""
    ledger = kit.ledger_for(url or f"sqlite:///{folder / 'undisturbed.db'}")
    weather = kit.Weather(ledger, None, {})
    kit.run_to_end(*kit.pipeline_for(ledger, messages))
    return str(ledger.engine.url), weather.statements


def boundaries(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    with databases(folder, postgres=options.postgres) as fresh:
        yield from _boundaries(options, folder, fresh)


def _boundaries(options: argparse.Namespace, folder: Path, fresh: Callable[[], str]) -> Iterator[Row]:
    url, statements = undisturbed(folder, kit.UNEVEN, fresh())
    expected, deaths, differing = (snapshot(url), totals(url)), 0, 0
    for dies_at in range(1, statements + 1, options.every):
        url = fresh()
        for at in (dies_at, None):
            ledger = kit.ledger_for(url)
            kit.Weather(ledger, at, {})
            with contextlib.suppress(kit.Killed):
                kit.run_to_end(*kit.pipeline_for(ledger, kit.UNEVEN))
            ledger.engine.dispose()
        deaths += 1
        differing += (snapshot(url), totals(url)) != expected
    yield f"{deaths} deaths, at statements and commits of {statements}", f"{differing} differ", not differing
    lost, differing = 0, 0
    for n in range(1, 1_000):
        url = fresh()
        ledger = kit.ledger_for(url)
        ledger.commits_left, ledger.after = n, True
        with contextlib.suppress(kit.Killed):
            kit.run_to_end(*kit.pipeline_for(ledger, kit.UNEVEN))
        died = ledger.commits_left <= 0
        ledger.engine.dispose()
        if not died:
            break
        again = kit.ledger_for(url)
        kit.run_to_end(*kit.pipeline_for(again, kit.UNEVEN))
        again.engine.dispose()
        lost += 1
        differing += (snapshot(url), totals(url)) != expected
    yield f"{lost} commits whose answer was lost with the process", f"{differing} differ", not differing


def disk(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """SQLite is allowed so many pages and no more, which it answers as it answers a full disk."""
    whole, _ = undisturbed(folder, kit.UNEVEN)
    ledger = kit.ledger_for(f"sqlite:///{folder / 'full.db'}")
    limit = {"pages": int(rows(str(ledger.engine.url), "pragma page_count")[0]["page_count"]) + 12}

    @event.listens_for(ledger.engine, "begin")
    def allow(connection: object) -> None:
        connection.connection.driver_connection.execute(f"pragma max_page_count = {limit['pages']}")  # type: ignore[attr-defined]

    pipeline, clock = kit.pipeline_for(ledger, kit.UNEVEN)
    full, partial = 0, 0
    for turn in range(10_000):
        if not pipeline.turn(0.0):
            break
        if pipeline.blocked:
            full += 1
            found = totals(str(ledger.engine.url))
            partial += found["records"] != sum(
                found[name] for name in ("accepted", "rejected", "late", "duplicates")
            )
            if full % 5 == 0:
                limit["pages"] += 12
        clock.advance(1_100 if turn % 2 else 3_000)
    url = str(ledger.engine.url)
    same = (snapshot(url), totals(url)) == (snapshot(whole), totals(whole))
    yield "times that the disk was full", f"{full}", full > 0
    yield "partial results meanwhile", f"{partial}", not partial
    yield "went on by itself, equal in the end", str(same), same


class JumpyClock(kit.ManualClock):
    """The wall clock jumps a day ahead and back at every look; the monotonic one does not."""

    looks = 0

    def now_ms(self) -> int:
        self.looks += 1
        return self.at_ms + (0, DAY_MS, -DAY_MS)[self.looks % 3]


def clock(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    whole, _ = undisturbed(folder, kit.UNEVEN)
    url = f"sqlite:///{folder / 'clock.db'}"
    feed = Feed(url, JumpyClock(START_MS + 30 * DAY_MS))
    for start in range(0, len(kit.UNEVEN), 50):
        feed.add(list(kit.UNEVEN[start : start + 50]))
    feed.pipeline._take_steps(feed.partition, feed.partition.windows.finish())
    feed.close()
    jumps = feed.clock.looks  # type: ignore[attr-defined]
    left, right = snapshot(url), snapshot(whole)
    differing = [view for view in right if left[view] != right[view]]
    yield (
        f"{jumps:,} jumps of a day: windows, alerts, incidents equal",
        str(differing or "yes"),
        not differing,
    )


class Feed:
    """A pipeline over one database that is given a log batch by batch and keeps nothing of it."""

    def __init__(self, url: str, clock: kit.ManualClock) -> None:
        self.ledger, self.source, self.clock = kit.ledger_for(url), MemorySource(bounded=False), clock
        models = kit.FixedModel(kit.PlainScorer())
        parts = kit.Parts(self.source, self.ledger, kit.Facts(self.ledger.engine), clock, models)
        self.pipeline, self.offset = Pipeline(kit.Settings(), parts), 0

    @property
    def partition(self) -> OwnedPartition:
        return self.pipeline.owned[KEY]

    def add(self, batch: list[bytes | None]) -> None:
        log = self.source._logs.get(KEY)
        if log is not None:
            log.batches.clear()
            log.batch = 0
        self.source.add(pack(KEY, range(self.offset, self.offset + len(batch)), batch))
        self.offset += len(batch)
        for _ in range(2):
            self.pipeline.turn(0.0)
            self.clock.advance(1_100)

    def close(self) -> None:
        self.pipeline.leave()
        self.ledger.engine.dispose()


def fuzzed(n: int, seed: int) -> Iterator[bytes | None]:
    """Valid records and everything that has ever broken a decoder or a database."""
    rng = random.Random(seed)
    good = lines(services=3, minutes=FUZZED_MS // 60_000, per_minute=20, fault_at=None)
    odd = [bad for bad, _ in BAD_LINES]
    for i in range(n):
        line = good[i * len(good) // n]
        kind = rng.randrange(24)
        if kind < 8:
            line = line.replace(b'"req-', b'"req-%d-' % i)
        elif kind == 8:
            at = rng.randrange(len(line))
            line = line[:at] + bytes([rng.randrange(256)]) + line[at + 1 :]
        elif kind == 9:
            line = line[: rng.randrange(len(line))]
        elif kind == 10:
            yield None
            continue
        elif kind == 11:
            line = odd[rng.randrange(len(odd))]
        elif kind == 12:
            line = rng.randbytes(rng.randrange(200))
        elif kind == 13:
            line = b"[" * rng.choice((10, 5_000)) + b"1"
        else:
            record = json.loads(line)
            name = rng.choice(list(record))
            record[name] = rng.choice(
                [None, True, -1, 2**63, 2**64, 10**400, 1e308, "", "\x00", "\ud800", "x" * 10_000, [], {},
                 "2036-03-02T00:10:00Z", "0001-01-01T00:00:00Z", 1e400, -0.0, "\u202e\x1b[31m"]
            )  # fmt: skip
            if kind > 20:
                record[f"unknown-{rng.randrange(5)}"] = {"a": [1] * rng.randrange(100)}
            line = json.dumps(record).encode()
        yield line


def fuzz(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    servers = [services.Postgres().start()] if options.postgres else []
    urls = {"SQLite": f"sqlite:///{folder / 'fuzz.db'}"}
    if servers:
        urls["PostgreSQL"] = services.create_database(servers[0].url)
    seen = {}
    for name, url in urls.items():
        feed, messages = Feed(url, kit.ManualClock(START_MS)), fuzzed(options.records, options.seed)
        while batch := list(islice(messages, 5_000)):  # live: what points ahead of now is refused
            produced_ms = FUZZED_MS * (feed.offset + len(batch)) // options.records
            feed.clock.at_ms = max(feed.clock.at_ms, START_MS + produced_ms)
            feed.add(batch)
        feed.close()
        found = totals(url)
        told = sum(found[kind] for kind in ("accepted", "rejected", "late", "duplicates"))
        count = " + ".join(f"{found[kind]:,}" for kind in ("accepted", "rejected", "late", "duplicates"))
        kept = told == options.records == found["position"]
        yield f"{name}: accepted + rejected + late + duplicate = produced", f"{count} = {told:,}", kept
        seen[name] = found
    if len(seen) > 1:
        yield (
            "both databases count alike",
            str(len({str(x) for x in seen.values()})),
            len({str(x) for x in seen.values()}) == 1,
        )
    if options.bombs:
        from benchmarks.bad_batches import through_a_broker

        few = list(fuzzed(min(options.records, options.through_broker), options.seed))
        yield from through_a_broker(
            folder, few, bombs=options.bombs, doomed=options.corrupt, seed=options.seed,
            postgres_url=servers[0].url if servers else "",
        )  # fmt: skip
    for server in servers:
        server.stop()


def one_byte(whole: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole))
    return whole[:at] + rng.randbytes(1) + whole[at + 1 :]


def models(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    from detectors import artifacts
    from detectors.ensemble import Ensemble
    from detectors.trial import ModelRefusedError, golden, try_out
    from tests.test_models import other_numbers, resealed, scrambled_trees

    prior = Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)
    whole, scores, rng = artifacts.save(prior), golden(prior), random.Random(options.seed)
    kinds: list[Callable[[], bytes]] = [
        lambda: whole[: rng.randrange(len(whole))],
        lambda: one_byte(whole, rng),
        lambda: rng.randbytes(rng.randrange(10_000)),
        lambda: whole + rng.randbytes(10),
    ]
    sealed = [lambda: resealed(whole, other_numbers), lambda: resealed(whole, scrambled_trees)]
    reasons = Counter[str]()
    for n in range(options.files):
        if n % 50 == 49:
            damaged, kind = sealed[n // 50 % len(sealed)](), "sealed again"
        else:
            damaged, kind = rng.choice(kinds)(), "damaged"
        if damaged == whole:
            damaged = whole[:-1]
        try:
            try_out(damaged, scores)
            reasons["taken"] += 1
        except ModelRefusedError as error:
            tried = str(error).startswith(("the trial", "its scores"))
            reasons[f"{kind}, refused: {error if tried else 'hashes or form'}"] += 1
    taken = reasons["taken"]
    yield f"{options.files} model files", f"{options.files - taken} refused, {taken} taken", not taken
    for reason, count in sorted(reasons.items()):
        yield reason, str(count), reason != "taken"
    try_out(whole, scores)
    yield "the sound one is taken, this process is alive", "yes", True


def receiver(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    from benchmarks.receiver_faults import receiver_faults

    yield from receiver_faults(
        folder, incidents=options.incidents, down_s=options.down_s, kills=options.kills, seed=options.seed
    )


def lag(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    from benchmarks.chaos import log_lines
    from benchmarks.receiver_lag import PER_S, receiver_lag

    log = log_lines(folder, int(options.down_s * PER_S * 1.2), options.seed)
    yield from receiver_lag(folder, log, down_s=options.down_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = {f.__name__: f for f in (boundaries, disk, clock, fuzz, models, receiver, lag)}
    parser.add_argument("section", choices=[*sections, "all"])
    parser.add_argument("--every", type=int, default=1, help="boundaries: try only every n-th statement")
    parser.add_argument("--records", type=int, default=1_000_000, help="fuzz: how many")
    parser.add_argument(
        "--postgres", action="store_true", help="fuzz: on PostgreSQL too; boundaries: instead of SQLite"
    )
    parser.add_argument(
        "--through-broker", type=int, default=20_000, help="fuzz: how many of them go through a broker too"
    )
    parser.add_argument("--bombs", type=int, default=30, help="fuzz: compression bombs, 0 = no broker")
    parser.add_argument("--corrupt", type=int, default=30, help="fuzz: corrupt batches on the broker's disk")
    parser.add_argument("--files", type=int, default=500, help="models: how many")
    parser.add_argument("--incidents", type=int, default=20, help="receiver: incidents per fault")
    parser.add_argument("--down-s", type=float, default=30.0, help="receiver: how long they misbehave")
    parser.add_argument("--kills", type=int, default=10, help="receiver: kills between send and mark")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logs.configure("warning")
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    broken = 0
    for name in sections if options.section == "all" else [options.section]:
        with tempfile.TemporaryDirectory() as folder:
            for promise, count, kept in sections[name](options, Path(folder)):
                broken += not kept
                print(f"{'kept  ' if kept else 'BROKEN'}  {promise}: {count}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
