"""Text that every database takes: no NUL, no lone surrogate, bounded length; JSON without NaN."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_TEXT = 8_192
_encoder = msgspec.json.Encoder()


def clean(value: str, limit: int = MAX_TEXT) -> str:
    """`value` without NUL and lone surrogates, cut to `limit` characters."""
    value = value[:limit]
    if "\0" in value:
        value = value.replace("\0", REPLACEMENT)
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()
    return value


def key(value: str, limit: int) -> str:
    """Like `clean`, but two long names that differ stay different: a cut one ends in a hash."""
    if len(value) <= limit:
        return clean(value, limit)
    digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:16]
    return clean(value, limit - 17) + "#" + digest


def to_json(value: Any) -> str:
    """JSON text of plain data and dataclasses; NaN and infinity become null, NUL is replaced."""
    try:
        encoded = _encoder.encode(value).decode()
    except UnicodeEncodeError:
        encoded = _encoder.encode(_scrubbed(msgspec.to_builtins(value))).decode()
    if "\\u0000" in encoded:  # PostgreSQL's jsonb refuses it
        encoded = _encoder.encode(_scrubbed(msgspec.to_builtins(value))).decode()
    return encoded


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value, len(value))
    if isinstance(value, dict):
        return {_scrubbed(k): _scrubbed(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrubbed(v) for v in value]
    return value
