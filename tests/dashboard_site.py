"""A database for the pages as a daemon leaves it: real ledger, fold, people, and delivery to receivers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from sqlalchemy import Engine, insert, select

from monitor.clock import SystemClock
from monitor.config import ChannelSettings, DeliverySettings, Settings
from monitor.delivery import DeliveryWorker
from monitor.incidents import make_fold
from monitor.people import people
from storage import queries, schema
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.outbox import Outbox
from storage.schema import table
from storage.types import (
    FEATURE_COLUMNS,
    AlertTransition,
    ModelVersionRow,
    RejectedRow,
    ScoredWindows,
)
from tests.receivers import hook, wait_for
from tests.storage_kit import MINUTE_MS, make_alert, make_commit, make_series

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
SPAN_MS = 27 * HOUR_MS

LARGE, SUPPORT, EMBED, RANK, FRESH = (
    "chat-large/assistant",
    "chat-small/support",
    "embed/documents",
    "rank/search",
    "fresh/beta",
)
HOSTILE = "<script>alert(1)</script>\u202egpj\x1b[31m/x"
FRESH_WINDOWS = 40
INDEX = {name: i for i, name in enumerate(FEATURE_COLUMNS)}
BASE = {
    LARGE: {"latency_p50_ms": 1_900, "latency_p99_ms": 4_800, "ttft_p95_ms": 620, "tpot_p50_ms": 27},
    SUPPORT: {"latency_p50_ms": 880, "latency_p99_ms": 2_100, "ttft_p95_ms": 390, "error_rate": 0.01},
    EMBED: {"latency_p50_ms": 42, "latency_p99_ms": 130, "memory_mb_max": 6_900, "gpu_util_mean": 0.61},
    RANK: {"latency_p50_ms": 18, "latency_p99_ms": 61, "accuracy": 0.82, "confidence_mean": 0.74},
    FRESH: {"latency_p50_ms": 300, "latency_p99_ms": 900},
}


@dataclass(frozen=True, slots=True)
class Story:
    """What was put in, for the tests to look for."""

    now_ms: int  # end of the newest window
    broken_since_ms: int  # of LARGE
    url: str


def populate(url: str, now_ms: int, *, hostile: bool = False) -> Story:
    """Five series, one more with a hostile name on request; two incidents open, one of them acknowledged.

    LARGE is broken since 38 minutes by version v7, and was so 3 days ago. The channel "oncall" has taken its
    notifications; "pager" breaks at what is about v7, and that notification was given up.
    """
    now_ms -= now_ms % MINUTE_MS
    story = Story(now_ms, now_ms - 38 * MINUTE_MS, url)
    engine = connect(url)
    try:
        upgrade(engine)
        with hook(200) as good, hook(refuse_v7) as bad:
            settings = Settings(
                channels={
                    "oncall": ChannelSettings(url=good.url, allow_private=True),
                    "pager": ChannelSettings(url=bad.url, allow_private=True, events=["incident.opened"]),
                },
                delivery=DeliverySettings(max_age_h=1e-6),
            )
            _fill(engine, settings, story, hostile)
            _people(engine, settings, story)
            _deliver(engine, settings)
        _models(engine, story)
    finally:
        engine.dispose()
    return story


def _fill(engine: Engine, settings: Settings, story: Story, hostile: bool) -> None:
    ledger = Ledger(
        engine, fold=make_fold(settings), owner="test", revision_horizon_ms=900_000, reopen_ms=1_800_000
    )
    now_ms, names = story.now_ms, [*BASE, *([HOSTILE] if hostile else [])]
    claim = ledger.claim("inference-logs", 0, now_ms=now_ms)
    rejects = [
        RejectedRow(100 + i, reason, sample, now_ms - i * MINUTE_MS)
        for i, (reason, sample) in enumerate(
            [("not_json", "{oops"), ("not_json", "<html>"), ("missing_model", '{"timestamp": 1767225600}')]
        )
    ]
    commit = make_commit(
        claim,
        None,
        412_345,
        watermark_ms=now_ms,
        committed_at_ms=now_ms,
        records=412_345,
        accepted=412_328,
        rejected=3,
        late=12,
        duplicates=2,
        model_version="9f2c41d07a55",
        windows=_windows(story),
        series=[
            make_series(name)._replace(first_seen_ms=now_ms - SPAN_MS, last_record_ms=now_ms - 1)
            for name in names
        ],
        rejected_rows=rejects,
        transitions=_transitions(story, hostile),
    )
    ledger.commit(commit)
    ledger.claim("inference-logs", 1, now_ms=now_ms)
    with engine.begin() as connection:
        connection.execute(
            insert(table(schema.DeploymentTable)),
            {"series": LARGE, "model_version": "v7", "at_ms": now_ms - 44 * MINUTE_MS},
        )


def _windows(story: Story) -> list[ScoredWindows]:
    random = np.random.default_rng(7)
    first_ms = story.now_ms - SPAN_MS
    made = []
    for start_ms in range(first_ms, story.now_ms, MINUTE_MS):
        fresh = start_ms >= story.now_ms - FRESH_WINDOWS * MINUTE_MS
        names = [name for name in BASE if name != FRESH or fresh]
        features = np.array([_features(name, start_ms, story, random) for name in names])
        broken = np.array([_is_broken(name, start_ms, story) for name in names])
        score = np.where(broken, random.uniform(0.93, 0.995, len(names)), random.beta(2, 9, len(names)))
        tail = np.where(broken, 2e-6, np.clip(1 - score, 1e-3, 1))
        made.append(
            ScoredWindows(
                window_start_ms=start_ms,
                window_end_ms=start_ms + MINUTE_MS,
                series=names,
                features=features,
                metrics=[
                    {"cache_hit": float(random.uniform(0.3, 0.5))} if n == RANK else None for n in names
                ],
                statistics=[b""] * len(names),
                sketches=[None] * len(names),
                score=score,
                gbdt_score=score,
                lstm_score=score,
                tail_probability=tail,
                is_anomalous=broken,
            )
        )
    return made


def _is_broken(name: str, start_ms: int, story: Story) -> bool:
    ago_min = (story.now_ms - start_ms) // MINUTE_MS
    if name == LARGE:
        return ago_min <= 38
    if name == EMBED:
        return 75 < ago_min <= 95 or ago_min <= 60
    return name == SUPPORT and 560 < ago_min <= 582


def _features(name: str, start_ms: int, story: Story, random: np.random.Generator) -> list[float]:
    row = [float("nan")] * len(FEATURE_COLUMNS)
    ago_h = (story.now_ms - start_ms) / HOUR_MS
    swing = 1 + 0.25 * np.sin(2 * np.pi * (24 - ago_h) / 24 - 2)
    row[INDEX["request_count"]] = float(random.poisson(55 * swing))
    row[INDEX["error_rate"]] = float(max(0, random.normal(0.004, 0.004)))
    for feature, value in BASE[name].items():
        load = 1 + (swing - 1) * 0.4 if feature.endswith("_ms") else 1.0
        row[INDEX[feature]] = float(value * load * random.lognormal(0, 0.06))
    if name == EMBED:
        row[INDEX["memory_mb_max"]] = 6_900 + 25 * max(0.0, 120 - ago_h * 60) + float(random.normal(0, 20))
    if _is_broken(name, start_ms, story):
        if name == LARGE:
            for feature, factor in (("latency_p99_ms", 3.1), ("ttft_p95_ms", 4.2), ("latency_p50_ms", 1.7)):
                row[INDEX[feature]] *= factor
        if name == SUPPORT:
            row[INDEX["error_rate"]] = float(random.uniform(0.25, 0.5))
    return row


def _transitions(story: Story, hostile: bool) -> list[AlertTransition]:
    now_ms = story.now_ms
    found: list[AlertTransition] = []

    def episode(series: str, start_ms: int, end_ms: int | None, **changes: Any) -> None:
        alert = make_alert(
            series, start_ms, **{**changes, "window_end_ms": end_ms if end_ms is not None else now_ms}
        )
        fired_ms = start_ms + 2 * MINUTE_MS
        found.append(AlertTransition(fired_ms, "fired", dataclasses.replace(alert, fired_at_ms=fired_ms)))
        if end_ms is not None:
            over = dataclasses.replace(alert, status="resolved", resolved_at_ms=end_ms)
            found.append(AlertTransition(end_ms + 5 * MINUTE_MS, "resolved", over))

    episode(LARGE, now_ms - 3 * DAY_MS, now_ms - 3 * DAY_MS + 52 * MINUTE_MS, **_slow("v6", 12_900))
    episode(SUPPORT, now_ms - 582 * MINUTE_MS, now_ms - 560 * MINUTE_MS, **_errors())
    episode(EMBED, now_ms - 95 * MINUTE_MS, None, **_memory())
    episode(LARGE, story.broken_since_ms, None, **_slow("v7", 15_400))
    if hostile:
        episode(HOSTILE, now_ms - 20 * MINUTE_MS, None, summary=f"p99 latency of {HOSTILE} is 900 ms")
    return sorted(found, key=lambda t: t.at_ms)


def _feature(feature: str, observed: float, expected: float, low: float, high: float, weight: float) -> Any:
    return {
        "feature": feature,
        "observed": observed,
        "expected": expected,
        "low": low,
        "high": high,
        "contribution": weight,
    }


def _slow(version: str, p99_ms: float) -> dict[str, Any]:
    return {
        "severity": "critical",
        "score": 0.9931,
        "tail_probability": 2e-6,
        "rarity": "once in 11 months for this series",
        "summary": f"p99 latency of {LARGE} is {p99_ms / 1000:.1f} s, usually 4.1 to 6.2 s at this hour; "
        f"also p95 time to first token 2.61 s, usually 480 to 790 ms at this hour; "
        f"94% of it from version {version}",
        "top_features": [
            _feature("latency_p99_ms", p99_ms, 5_050, 4_100, 6_200, 0.52),
            _feature("ttft_p95_ms", 2_610, 640, 480, 790, 0.31),
            _feature("latency_p50_ms", 3_200, 1_900, 1_600, 2_300, 0.11),
        ],
        "slices": [
            {
                "field": "model_version",
                "value": version,
                "share": 0.94,
                "traffic_share": 0.2,
                "reason": "94% of the excess latency, 20% of the traffic",
            },
            {
                "field": "tenant",
                "value": "acme",
                "share": 0.61,
                "traffic_share": 0.3,
                "reason": "61% of the excess latency, 30% of the traffic",
            },
        ],
        "exemplars": ["req-7f31a0", "req-7f31c4", "req-7f32e9"],
        "model_versions": [version, "v5"],
    }


def _errors() -> dict[str, Any]:
    return {
        "severity": "major",
        "summary": f"error rate of {SUPPORT} is 38.5%, usually 0% to 3.1% at this hour; "
        "all of it from error type internal",
        "top_features": [_feature("error_rate", 0.385, 0.008, 0.0, 0.031, 0.83)],
        "slices": [
            {"field": "error_type", "value": "internal", "share": 1.0, "reason": "100% of the errors"}
        ],
        "model_versions": ["v20"],
    }


def _memory() -> dict[str, Any]:
    return {
        "severity": "warning",
        "score": 0.951,
        "reason": "sustained",
        "rarity": "once in 2 weeks for this series",
        "summary": f"peak memory of {EMBED} is 9,870 MB, usually 6,810 to 7,030 MB at this hour",
        "top_features": [_feature("memory_mb_max", 9_870, 6_900, 6_810, 7_030, 0.9)],
        "slices": [],
        "exemplars": [],
        "model_versions": ["v2"],
    }


def incident_of(engine: Engine, series: str, status: str | None = None) -> str:
    """Id of the newest incident of a series."""
    rows = queries.incidents(engine, status=status, limit=100)
    return next(str(row["incident_id"]) for row in rows if series in row["series"])


def _people(engine: Engine, settings: Settings, story: Story) -> None:
    actions, now_ms = people(engine, settings), story.now_ms
    before = incident_of(engine, LARGE, "resolved")
    comment = "rollout of v6 without warm-up"
    actions.label(before, "true_positive", by="mira", now_ms=now_ms - 3 * DAY_MS, comment=comment)
    leak = incident_of(engine, EMBED)
    actions.acknowledge(leak, by="mira", now_ms=now_ms - 80 * MINUTE_MS, reason="looks like the leak of #418")
    actions.note(
        leak, "Restarted one of four replicas.\nIts memory is back at 6.9 GB.", by="jo", now_ms=now_ms
    )
    actions.silence(
        {"model": "rank"},
        starts_at_ms=now_ms - HOUR_MS,
        ends_at_ms=now_ms + 2 * HOUR_MS,
        by="jo",
        now_ms=now_ms - HOUR_MS,
        comment="load test",
    )


def refuse_v7(handler: Any) -> None:
    """A receiver that breaks at whatever is about version v7."""
    with handler.server.lock:
        mine = [
            body
            for headers, body in handler.server.requests
            if headers["webhook-id"] == handler.headers["webhook-id"]
        ]
    handler.send_response(500 if b"version v7" in mine[-1] else 200)
    handler.send_header("content-length", "0")
    handler.end_headers()


def _deliver(engine: Engine, settings: Settings) -> None:
    """The real worker; `max_age_h` is next to nothing, so what "pager" refuses is given up at once."""
    outbox, deliveries = Outbox(engine), table(schema.DeliveryTable)
    worker = DeliveryWorker(outbox, settings, SystemClock(), owner="test")
    worker.start()

    def is_settled() -> bool:
        with engine.connect() as connection:
            found = set(connection.execute(select(deliveries.c.status)).scalars())
        return bool(found) and found <= {"delivered", "dead"}

    try:
        wait_for(is_settled)
    finally:
        worker.stop()


def _models(engine: Engine, story: Story) -> None:
    from storage.models import ModelRegistry

    registry = ModelRegistry(engine)
    artifact = (resources.files("detectors") / "prior" / "prior.iwm").read_bytes()
    versions: list[tuple[str, int, str, str, dict[str, Any]]] = [
        ("41b0c9d2e6f8", 9, "champion", "average precision on held-out faults changes by +0.064", {}),
        ("9f2c41d07a55", 2, "champion", "average precision on held-out faults changes by +0.021", {}),
        ("c07d5e11ab34", 1, "refused", "average precision on held-out faults changes by -0.013", {}),
    ]
    for i, (version, days, status, reason, extra) in enumerate(versions):
        metrics = {
            "champion_average_precision": 0.71 + i / 50,
            "challenger_average_precision": 0.73 + i / 50,
            "held_out_faults": 48,
            "windows": 28_800,
            "lstm": {"validation_loss": [round(1.9 * 0.82**k + 0.31, 4) for k in range(24)]},
            **extra,
        }
        row = ModelVersionRow(
            version, "ensemble", story.now_ms - days * DAY_MS, status, metrics, artifact, "0" * 64, reason
        )
        registry.add(row)
