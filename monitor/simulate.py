"""`inferwatch simulate`: realistic native logs of imaginary services, with faults, to a file or a topic."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from monitor.clock import Clock, SystemClock
from monitor.errors import InferwatchError
from monitor.fault_kinds import KINDS
from monitor.fault_plan import sample_faults, usable_kinds
from monitor.generate import generate
from monitor.lines import encode_lines
from monitor.record_faults import Fault, Touched
from monitor.sinks import open_sink, pace
from monitor.truth import TruthInterval, truth_of, write_truth
from monitor.workload import (
    ANCHOR_MS,
    BINS_PER_DAY,
    DAY_MS,
    HOUR_MS,
    Profile,
    Workload,
    load_workloads,
    sample_profile,
)

SERVICES = (
    ("chat-large", "assistant", "llm"),
    ("chat-small", "support", "llm"),
    ("code-complete", "editor", "llm"),
    ("rank", "search", "classifier"),
    ("summarise", "documents", "llm"),
    ("embed", "index", "embedding"),
    ("moderate", "comments", "classifier"),
    ("translate", "live", "llm"),
)
_FOLLOW_DAYS = 60  # how far ahead random faults are laid when there is no end
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": HOUR_MS, "d": DAY_MS}


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What to simulate. Exactly one of `out` and `topic` is given."""

    out: Path | None = None  # JSON lines; .gz is packed
    topic: str | None = None
    bootstrap_servers: str = "localhost:9092"
    days: float = 1.0
    services: int = 4
    rate_per_s: float | None = None  # mean records per s and service; None = 0.05 to 2, drawn
    seed: int = 1
    start_ms: int | None = None  # None = 2026-01-05T00:00:00Z, with `follow`: `days` before now
    faults: tuple[str, ...] = ()  # KIND@SERVICE:START+DURATION[*SIZE]
    random_faults: int = 0  # per service and day
    truth: Path | None = None
    follow: bool = False  # go on for ever, at the pace of the clock


@dataclass(frozen=True, slots=True)
class SimulateSummary:
    """What was written. `truth` lists every fault, also those that changed nothing."""

    records: int
    bytes: int
    series: dict[str, int]  # records of each
    start_ms: int
    end_ms: int
    truth: list[TruthInterval]


def simulate(
    options: SimulateOptions,
    *,
    profiles: Sequence[Profile] | None = None,
    clock: Clock | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SimulateSummary:
    """Write the log of `profiles`, or of services drawn from the options.

    `on_progress(event time in ms, records so far)` is called once per hour of event time. The same
    options give the same bytes (with `follow`, from the same start). `stop` ends it early.
    Raises InferwatchError for options that cannot be carried out or a broker that takes nothing.
    """
    clock, stop = clock or SystemClock(), stop or threading.Event()
    if (options.out is None) == (options.topic is None):
        raise InferwatchError("give either --out FILE or --topic NAME")
    if options.services < 1 or options.days <= 0:
        raise InferwatchError("--services and --days must be positive")
    start_ms = options.start_ms
    if start_ms is None:
        start_ms = ANCHOR_MS
        if options.follow:
            start_ms = (clock.now_ms() - int(options.days * DAY_MS)) // 60_000 * 60_000
    end_ms = start_ms + int((_FOLLOW_DAYS if options.follow else options.days) * DAY_MS)
    if profiles is None:
        profiles = make_services(options.services, options.seed, options.rate_per_s)
    faults = [parse_fault(text, profiles, start_ms) for text in options.faults]
    faults += _random_faults(profiles, options, start_ms, end_ms)
    touched = Touched()
    records, size, at_ms = 0, 0, start_ms
    per_series = {profile.series: 0 for profile in profiles}
    with ExitStack() as stack:
        sink = open_sink(options.out, options.topic, options.bootstrap_servers, stack)
        write = pace(sink, clock, stop) if options.follow else sink.write
        for hour_ms in _hours(start_ms, None if options.follow else end_ms):
            if stop.is_set():
                break
            next_ms = hour_ms + HOUR_MS
            span = max(hour_ms, start_ms), next_ms if options.follow else min(next_ms, end_ms)
            keys, lines = _merged(profiles, faults, span, options.seed, touched, per_series)
            write(keys, lines)
            records, size, at_ms = records + len(lines), size + sum(map(len, lines)) + len(lines), span[1]
            if on_progress is not None:
                on_progress(at_ms, records)
    truth = [item for profile in profiles for item in truth_of(profile, faults, touched)]
    if options.truth is not None:
        write_truth(options.truth, profiles, truth, seed=options.seed, span_ms=(start_ms, at_ms))
    return SimulateSummary(records, size, per_series, start_ms, at_ms, truth)


def make_services(count: int, seed: int, rate_per_s: float | None = None) -> list[Profile]:
    """`count` services with names of their own, each on one real workload."""
    rng = np.random.default_rng([seed, 77])
    steady = [name for name, shape in load_workloads().items() if _is_steady(shape)]
    chosen = rng.permutation(np.resize(rng.permutation(steady), count)).tolist()
    profiles = []
    for i, client in enumerate(chosen):
        model, endpoint, kind = SERVICES[i % len(SERVICES)]
        round_ = i // len(SERVICES)
        rate = float(np.exp(rng.uniform(np.log(0.05), np.log(2.0)))) if rate_per_s is None else rate_per_s
        profiles.append(
            sample_profile(
                rng,
                model=model,
                endpoint=f"{endpoint}-{round_ + 1}" if round_ else endpoint,
                clients=(client,),
                rate_per_s=rate,
                kind=kind,
                complete=i < 2,
            )
        )
    return profiles


def _is_steady(shape: Workload) -> bool:
    """Traffic on every day and no burst that dwarfs all the rest."""
    rate = shape.rate_per_s
    daily = rate.reshape(-1, BINS_PER_DAY).mean(axis=1)
    return bool(daily.min() > 0.3 * rate.mean() and rate.max() < 15 * rate.mean())


def parse_fault(text: str, profiles: Sequence[Profile], start_ms: int) -> Fault:
    """`KIND@SERVICE:START+DURATION[*SIZE]`, e.g. `slow@2:1d6h+30m*3`.

    SERVICE is a series name or its number from 1; START is RFC 3339 or a time after the start of the
    log; DURATION and such times are made of 30s, 5m, 6h, 1d. Without SIZE the fault is middling.
    Raises InferwatchError that says what is wrong.
    """
    match = re.fullmatch(r"(\w+)@([^:]+):(.+)\+([0-9smhd]+)(?:\*([0-9.]+))?", text)
    if match is None:
        raise InferwatchError(f"--fault {text!r}: write KIND@SERVICE:START+DURATION[*SIZE]")
    kind, service, start, duration, size = match.groups()
    if kind not in KINDS:
        raise InferwatchError(f"--fault {text!r}: no kind {kind!r}; one of {', '.join(KINDS)}")
    names = {p.series: p for p in profiles} | {str(i): p for i, p in enumerate(profiles, 1)}
    if service not in names:
        raise InferwatchError(f"--fault {text!r}: no service {service!r}; one of {', '.join(names)}")
    profile = names[service]
    if not usable_kinds(profile, [kind]):
        raise InferwatchError(f"--fault {text!r}: {profile.series} does not log what {kind} would change")
    if re.fullmatch(r"([0-9]+[smhd])+", start):
        begin = start_ms + _span_ms(start, text)
    else:
        begin = _time_ms(start, text)
    spec = KINDS[kind]
    middling = float(np.sqrt(spec.mild * spec.gross))
    return Fault(
        kind,
        profile.series,
        begin,
        begin + _span_ms(duration, text),
        float(size) if size else round(middling, 3),
    )


def _span_ms(text: str, whole: str) -> int:
    parts = re.findall(r"([0-9]+)([smhd])", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise InferwatchError(f"--fault {whole!r}: {text!r} is no length of time; write 90s, 30m or 1d12h")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in parts)


def _time_ms(text: str, whole: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InferwatchError(f"--fault {whole!r}: {text!r} is no time; write 2026-01-06T14:00:00Z") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _random_faults(
    profiles: Sequence[Profile], options: SimulateOptions, start_ms: int, end_ms: int
) -> list[Fault]:
    """Faults of any kind; the first day of the log stays quiet."""
    if not options.random_faults:
        return []
    found = []
    for profile in profiles:
        quiet_ms = min(start_ms + DAY_MS, end_ms)
        count = round(options.random_faults * (end_ms - quiet_ms) / DAY_MS)
        rng = np.random.default_rng([options.seed, profile.key, 78])
        found += sample_faults(profile, rng, quiet_ms, end_ms, count)
    return found


def _hours(start_ms: int, end_ms: int | None) -> Iterator[int]:
    hour_ms = start_ms - start_ms % HOUR_MS
    while end_ms is None or hour_ms < end_ms:
        yield hour_ms
        hour_ms += HOUR_MS


def _merged(
    profiles: Sequence[Profile],
    faults: Sequence[Fault],
    span_ms: tuple[int, int],
    seed: int,
    touched: Touched,
    per_series: dict[str, int],
) -> tuple[list[bytes], list[bytes]]:
    """Keys and lines of all services of one hour, in event-time order."""
    times, keys, lines = [], [], []
    for profile in profiles:
        for records in generate(profile, *span_ms, seed, faults=faults, touched=touched, request_ids=True):
            times.append(records.timestamp_ms)
            lines += encode_lines(records)
            keys += [profile.series.encode()] * len(records)
            per_series[profile.series] += len(records)
    order = np.argsort(np.concatenate(times), kind="stable").tolist() if times else []
    return [keys[i] for i in order], [lines[i] for i in order]
