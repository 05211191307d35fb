"""The native log format: one flat JSON object per message.

`parse` is the fast path and takes what is right; whatever it refuses goes to `refusal`, which looks at
the message again, slowly, to name the reason. A message is never echoed: see `sample`.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta, Struct

from monitor.errors import DecodeError

MAX_TEXT_CHARS = 512  # keeps an index key of PostgreSQL below its 8,191 bytes
MAX_NUMBER = 1e15
MAX_METRIC_NAME_CHARS = 128
MAX_DEPTH = 500
INT64_MAX = 2**63 - 1
EPOCH_SPAN_S = (946_684_800, 4_102_444_800)  # 2000-01-01 up to, not including, 2100-01-01
SAMPLE_CHARS = 200

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)] | None
Amount = Annotated[float, Meta(ge=0, le=MAX_NUMBER)] | None
Share = Annotated[float, Meta(ge=0, le=1)] | None
Integer = Annotated[int, Meta(ge=-(2**63), le=INT64_MAX)]
Time = (
    Annotated[datetime, Meta(tz=True)]
    | Annotated[int, Meta(ge=0, le=INT64_MAX)]
    | Annotated[float, Meta(ge=0, le=float(2**63))]
)
MetricName = Annotated[str, Meta(min_length=1, max_length=MAX_METRIC_NAME_CHARS)]
Metric = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None


class Record(Struct, gc=False):
    """One record as it stands in the log; null means absent. Unknown fields are skipped."""

    timestamp: Time
    model: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS)]
    request_id: Text = None
    model_version: Text = None
    endpoint: Text = None
    tenant: Text = None
    region: Text = None
    error_type: Text = None
    finish_reason: Text = None
    status: Literal["ok", "error"] | Annotated[int, Meta(ge=100, le=599)] | None = None
    latency_ms: Amount = None
    ttft_ms: Amount = None
    tpot_ms: Amount = None
    queue_ms: Amount = None
    input_tokens: Amount = None
    output_tokens: Amount = None
    memory_mb: Amount = None
    gpu_util: Share = None
    confidence: Share = None
    cost_usd: Amount = None
    prediction: str | bool | Integer | float | None = None
    label: str | bool | Integer | float | None = None
    metrics: dict[MetricName, Metric] | None = None


FIELDS: tuple[str, ...] = Record.__struct_fields__
TEXTS = FIELDS[1:9]
SHARES = ("gpu_util", "confidence")
AMOUNTS = tuple(name for name in FIELDS[10:20] if name not in SHARES)

_decode = msgspec.json.Decoder(Record).decode


def parse(value: bytes | memoryview) -> Record | None:
    """The record in a message, or None if it is none. Never raises.

    Left to the caller: the size, NUL characters in strings (written as `\\u0000`) and the span of time.
    """
    try:
        return _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, MemoryError, ValueError):
        return None


def has_nul(record: Record) -> bool:
    """A string that would be stored holds a NUL character, which PostgreSQL refuses."""
    texts = [getattr(record, name) for name in TEXTS] + list(record.metrics or ())
    return any(text is not None and "\0" in text for text in texts)


def epoch_s(timestamp: datetime | float) -> float:
    """Seconds since the epoch. A number counts s, ms, us or ns, told apart by its size."""
    if isinstance(timestamp, datetime):
        return timestamp.timestamp()
    for unit_per_s, below in ((1.0, 1e11), (1e3, 1e14), (1e6, 1e17)):
        if timestamp < below:
            return timestamp / unit_per_s
    return timestamp / 1e9


def refusal(value: bytes) -> str:
    """The reason (one of REJECT_REASONS) for which `parse` or its caller refused a message."""
    try:
        _check(_load(value))
    except DecodeError as error:
        return error.reason
    except (RecursionError, MemoryError):
        return "too_deep"
    return "wrong_type"


def _load(value: bytes) -> Any:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise DecodeError("invalid_utf8") from None

    def not_finite(constant: str) -> NoReturn:
        raise DecodeError("not_finite", constant)

    try:
        # Integers of more than 19 digits are out of every range; a float keeps them cheap.
        return json.loads(
            text, parse_constant=not_finite, parse_int=lambda s: int(s) if len(s) < 21 else float(s)
        )
    except ValueError:
        raise DecodeError("not_json") from None


def _check(found: Any) -> None:
    if not isinstance(found, dict):
        raise DecodeError("not_an_object")
    for name in ("timestamp", "model"):
        if found.get(name) is None:
            raise DecodeError("missing_field", name)
    _check_time(found["timestamp"])
    for name in TEXTS:
        _check_text(found.get(name), 1 if name == "model" else 0, MAX_TEXT_CHARS)
    for name in AMOUNTS:
        _check_number(found.get(name), 0.0, MAX_NUMBER)
    for name in SHARES:
        _check_number(found.get(name), 0.0, 1.0)
    _check_status(found.get("status"))
    for name in ("prediction", "label"):
        _check_outcome(found.get(name))
    metrics = found.get("metrics")
    if metrics is not None:
        if not isinstance(metrics, dict):
            raise DecodeError("wrong_type", "metrics")
        for name, number in metrics.items():
            _check_text(name, 1, MAX_METRIC_NAME_CHARS)
            _check_number(number, -MAX_NUMBER, MAX_NUMBER)


def _check_time(found: Any) -> None:
    if isinstance(found, str):
        try:
            time = msgspec.convert(found, Annotated[datetime, Meta(tz=True)])
        except (msgspec.ValidationError, UnicodeEncodeError):
            raise DecodeError("timestamp_invalid") from None
        found = (time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    elif isinstance(found, bool) or not isinstance(found, int | float):
        raise DecodeError("timestamp_invalid")
    elif math.isinf(found):
        raise DecodeError("timestamp_out_of_range")
    if not EPOCH_SPAN_S[0] <= epoch_s(found) < EPOCH_SPAN_S[1]:
        raise DecodeError("timestamp_out_of_range")


def _check_text(found: Any, min_chars: int, max_chars: int) -> None:
    if found is None:
        return
    if not isinstance(found, str):
        raise DecodeError("wrong_type")
    surrogate = any("\ud800" <= c <= "\udfff" for c in found)
    if not min_chars <= len(found) <= max_chars or "\0" in found or surrogate:
        raise DecodeError("out_of_range")


def _check_number(found: Any, low: float, high: float) -> None:
    if found is None:
        return
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise DecodeError("wrong_type")
    if not low <= found <= high:
        raise DecodeError("out_of_range")


def _check_status(found: Any) -> None:
    if found is None or found in ("ok", "error"):
        return
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise DecodeError("wrong_type")
    if isinstance(found, str) or not 100 <= found <= 599:
        raise DecodeError("out_of_range")


def _check_outcome(found: Any) -> None:
    if isinstance(found, dict | list):
        raise DecodeError("wrong_type")
    if isinstance(found, int | float) and not -(2**63) <= found <= INT64_MAX:
        raise DecodeError("out_of_range")
    if isinstance(found, str) and any("\ud800" <= c <= "\udfff" for c in found):
        raise DecodeError("out_of_range")


_MASKED = re.compile(r'"(?:' + "|".join(FIELDS) + r')"(?=\s*:)|[^\W\d_]|\d')


def sample(value: bytes) -> str:
    """What a message looks like without what it says: at most 200 printable characters.

    Letters become `a` and digits `9`; only the names of known fields are kept, so that no prompt or
    output can get into the database through a rejected record.
    """
    text = value[: 4 * SAMPLE_CHARS].decode("utf-8", errors="replace")
    masked = _MASKED.sub(_mask, text)
    return "".join(c if c.isprintable() else "?" for c in masked[:SAMPLE_CHARS])


def _mask(match: re.Match[str]) -> str:
    found = match[0]
    if len(found) > 1:
        return found
    return "9" if found.isdigit() else "a"
