"""Signatures of Standard Webhooks (specification 1.0.0, symmetric scheme v1), several secrets at a time.

The signed content is "id.timestamp.body"; the signature HMAC-SHA256 in base64, written "v1,...". While
secrets are rotated a message carries one signature per secret, separated by spaces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence

PREFIX = "whsec_"
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 64
TOLERANCE_S = 300
HEADER_ID, HEADER_TIMESTAMP, HEADER_SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"


class BadSignature(Exception):  # noqa: N818  (what the receiver says)
    """The message is refused; reasons: missing_header, bad_timestamp, too_old, too_new, no_match."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_secrets(text: str) -> list[bytes]:
    """Keys of one or more `whsec_...` secrets separated by white space, the current one first.

    Raises ValueError, without the secret in its message, for anything else.
    """
    keys = []
    for number, secret in enumerate(text.split(), start=1):
        if not secret.startswith(PREFIX):
            raise ValueError(f"secret {number} does not begin with {PREFIX}")
        encoded = secret.removeprefix(PREFIX)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"secret {number} is not base64 after {PREFIX}") from None
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ValueError(
                f"secret {number} holds {len(key)} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
            )
        keys.append(key)
    if not keys:
        raise ValueError("no secret is given")
    return keys


def sign(keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a message. Raises ValueError for an id that could be taken apart differently."""
    if not message_id or "." in message_id:
        raise ValueError("a message id is not empty and holds no dot")
    return {
        HEADER_ID: message_id,
        HEADER_TIMESTAMP: str(timestamp_s),
        HEADER_SIGNATURE: " ".join(_signature(key, message_id, str(timestamp_s), body) for key in keys),
    }


def verify(
    keys: Sequence[bytes],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_s: int,
    tolerance_s: int = TOLERANCE_S,
) -> str:
    """The id of a message that one of our keys signed within the tolerance; raises BadSignature."""
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = lower[HEADER_ID], lower[HEADER_TIMESTAMP]
        passed = lower[HEADER_SIGNATURE].split()
    except KeyError:
        raise BadSignature("missing_header") from None
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise BadSignature("bad_timestamp")
    if int(timestamp) < now_s - tolerance_s:
        raise BadSignature("too_old")
    if int(timestamp) > now_s + tolerance_s:
        raise BadSignature("too_new")
    for key in keys:
        ours = _signature(key, message_id, timestamp, body).encode()
        if any(hmac.compare_digest(ours, theirs.encode("utf-8", "replace")) for theirs in passed[:16]):
            return message_id
    raise BadSignature("no_match")


def _signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode()
