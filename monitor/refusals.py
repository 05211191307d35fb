"""Why a JSON object is no record: which of its fields is wrong, and what it must be."""

from __future__ import annotations

import json
from typing import Any

from monitor.formats import native


def troubles(found: dict[str, Any]) -> list[str]:
    """What would have this object rejected, a sentence per field."""
    said = [f"`{name}` is missing" for name in ("timestamp", "model") if found.get(name) is None]
    for name in native.FIELDS:
        if found.get(name) is None:
            continue
        alone = {"timestamp": native.EPOCH_SPAN_S[0], "model": "m", name: found[name]}
        value = json.dumps(alone).encode()
        record = native.parse(value)
        reason = native.refusal(value) if record is None or native.has_nul(record) else None
        if name == "timestamp" and record is not None:
            low, high = native.EPOCH_SPAN_S
            reason = None if low <= native.epoch_s(record.timestamp) < high else "timestamp_out_of_range"
        if reason is not None:
            said.append(f"`{name}` {_must_be(name, reason)}")
    return said


def _must_be(name: str, reason: str) -> str:
    if reason == "timestamp_out_of_range":
        return "lies before 2000 or after 2099"
    if name == "timestamp":
        return "must be RFC 3339 with an offset (2026-01-31T12:00:00Z) or a number of s, ms, us or ns"
    if name == "status":
        return 'must be an HTTP code, "ok" or "error"'
    if name in native.SHARES:
        return "must be a number between 0 and 1"
    if name in native.AMOUNTS:
        return "must be a number, 0 or more"
    if name in native.TEXTS:
        return f"must be a text of at most {native.MAX_TEXT_CHARS} characters, without NUL"
    return "must be names with numbers" if name == "metrics" else "must be a text, a number, true or false"
