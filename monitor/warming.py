"""Everything that is compiled or imported at its first use, used once before the daemon joins the group.

A machine that runs this for the first time compiles for seconds to minutes. A member that did so with
partitions in its hands would hold them up, and could neither read nor end in order meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import msgspec

from detectors.base import Scorer
from monitor.config import Settings
from monitor.records import Decoder
from monitor.sources.base import Partition
from monitor.sources.batches import pack
from monitor.windows import Added, AmendedWindow, ClosedWindows, PartitionWindows

PARTITION = Partition("warm-up", 0)
START_MS = 1_767_225_600_000  # any time will do
CALM_WINDOWS, BROKEN_WINDOWS = 36, 4
COLLECT_EVERY = 50_000  # objects
RECORDS = 700  # of the first window: more than an open window has room for at first


def warm_up(settings: Settings, scorer: Scorer) -> int:
    """Take made-up records through decoding, windows (late ones too) and scoring; returns the windows
    scored. What it computes is thrown away.
    """
    window_ms = settings.window.length_s * 1000
    horizon_s = float((CALM_WINDOWS + BROKEN_WINDOWS) * settings.window.length_s)
    window = settings.window.model_copy(update={"revision_horizon_s": horizon_s})
    decoder = Decoder(settings.record, settings.source, window)
    sketches: dict[tuple[str, int], bytes | None] = {}
    windows = PartitionWindows(
        window, settings.record.series_by, PARTITION, watermark_ms=None, next_offset=None,
        close_offset=None, load_sketch=lambda series, start_ms: sketches.get((series, start_ms)),
        max_metrics=settings.record.max_metrics,
    )  # fmt: skip
    states, offset, scored = scorer.new_states(), 0, 0

    def take(added: Added) -> int:
        for step in added.steps:
            if isinstance(step, ClosedWindows):
                scorer.score(step.batch, states)
                states.dump_all(step.batch.series)
                for series, sketch in zip(step.batch.series, step.sketches, strict=True):
                    sketches[series, step.batch.window_start_ms] = sketch
            elif isinstance(step, AmendedWindow):
                scorer.rescore(step.batch, states)
        return sum(isinstance(step, ClosedWindows | AmendedWindow) for step in added.steps)

    for messages in _messages(window_ms):
        raw = pack(PARTITION, range(offset, offset + len(messages)), messages)
        offset = raw.next_offset
        records, _ = decoder.decode(raw, now_ms=START_MS + round(1000 * horizon_s))
        scored += take(windows.add(records))
    scored += take(windows.finish())
    spare_the_collector()
    return scored


def spare_the_collector() -> None:
    """What is loaded now stays, and need not be walked again while 10,000 series wait for their commit: that
    takes 0.2 s each time. The rows of a commit are many and hold no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


def _messages(window_ms: int) -> Iterator[list[bytes]]:
    """Per window: two series that are calm, then fail; in between a record that is late for its window."""
    for window in range(CALM_WINDOWS + BROKEN_WINDOWS):
        broken = window >= CALM_WINDOWS
        at_ms = START_MS + window * window_ms
        count = RECORDS if window == 0 else 12
        messages = [
            _message(at_ms + i * window_ms // count, f"{window}-{i}", i, broken) for i in range(count)
        ]
        if window == CALM_WINDOWS // 2:
            messages.append(_message(START_MS, "late", 0, broken))
        yield messages


def _message(at_ms: int, name: str, i: int, broken: bool) -> bytes:
    return msgspec.json.encode(
        {
            "timestamp": at_ms,
            "model": "warm-up",
            "endpoint": f"{i % 2}",
            "model_version": "v2" if broken else "v1",
            "tenant": f"t{i % 3}",
            "region": "r",
            "request_id": name,
            "status": 500 if broken else 200,
            "error_type": "internal" if broken else None,
            "latency_ms": 9_000.0 if broken else 100.0 + i % 7,
            "ttft_ms": 20.0,
            "tpot_ms": 5.0,
            "input_tokens": 100 + i % 5,
            "output_tokens": 0 if broken else 50,
            "finish_reason": "stop",
            "confidence": 0.9,
            "prediction": "a",
            "label": "a",
            "cost_usd": 0.001,
            "metrics": {"warm_up": 1.0},
        }
    )
