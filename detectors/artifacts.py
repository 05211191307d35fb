"""An ensemble <-> bytes: a manifest with the SHA-256 of every part, then the parts. No pickle.

LightGBM's text loader and safetensors are not safe on damaged files, so no parser sees a byte before all
hashes agree. Layout: magic, length of the manifest (u32), its digest (32 bytes), manifest (JSON), parts.
The digest is SHA-256, or HMAC-SHA-256 where there is a key: the environment's INFERWATCH_MODEL_KEY, which the
processes that train models and try them out inherit.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import zlib
from typing import Any

from detectors.calibration import Calibration
from detectors.ensemble import Ensemble
from detectors.features import NAMES
from detectors.gbdt import Forest
from detectors.lstm import LstmModel

KEY_VARIABLE = "INFERWATCH_MODEL_KEY"
SHIPPED = b""
"""The key of what comes with the package: its files are as trustworthy as the code beside them."""
_MAGIC = b"IWM1"
_HEAD = struct.Struct("<4sI32s")
_FEATURES_HASH = hashlib.sha256(repr(NAMES).encode()).hexdigest()
_MAX_TEXT_BYTES = 64 << 20


def _key(given: bytes | None) -> bytes:
    """The key to use; none (b"") without one in the call and in the environment."""
    return os.environ.get(KEY_VARIABLE, "").encode() if given is None else given


def _digest(manifest: bytes, key: bytes) -> bytes:
    if not key:
        return hashlib.sha256(manifest).digest()
    return hmac.new(key, manifest, hashlib.sha256).digest()


def save(ensemble: Ensemble, *, key: bytes | None = None) -> bytes:
    """The same ensemble always gives the same bytes. `key`: sign with it, and require it on load; None = the
    one of the environment, if it has one.
    """
    key = _key(key)
    parts = {
        "gbdt.txt.z": zlib.compress(ensemble.forest.text.encode(), 9),
        "calibration.json": json.dumps(ensemble.calibration.to_json(), sort_keys=True).encode(),
    }
    if ensemble.lstm is not None:
        parts["lstm.safetensors"] = ensemble.lstm.to_bytes()
    manifest = {
        "features": _FEATURES_HASH,
        "metadata": ensemble.metadata,
        "parts": [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in parts.items()],
        "signed": bool(key),
        "version": ensemble.version,
    }
    text = json.dumps(manifest, sort_keys=True).encode()
    return _HEAD.pack(_MAGIC, len(text), _digest(text, key)) + text + b"".join(parts.values())


def _verified(artifact: bytes, key: bytes | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    if len(artifact) < _HEAD.size:
        raise ValueError("a model artefact ends inside its header")
    magic, length, digest = _HEAD.unpack_from(artifact)
    text = artifact[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(text) != length:
        raise ValueError("not a model artefact")
    if not hmac.compare_digest(digest, _digest(text, _key(key))):
        signed = " or was signed with another key, or with none" if _key(key) else ""
        raise ValueError(f"the manifest of a model artefact does not match its digest{signed}")
    manifest = json.loads(text)
    at, parts = _HEAD.size + length, {}
    for name, size, expected in manifest["parts"]:
        data = artifact[at : at + size]
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"part {name} of a model artefact does not match its hash")
        parts[name] = data
        at += size
    if at != len(artifact):
        raise ValueError("a model artefact goes on behind its last part")
    return manifest, parts


def verify(artifact: bytes, *, key: bytes | None = None) -> None:
    """Compare every hash; parses nothing that is not vouched for. Raises ValueError."""
    try:
        _verified(artifact, key)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the manifest of a model artefact is odd: {type(error).__name__}") from None


def load(
    artifact: bytes, *, false_alarms_per_week: float, window_ms: int, key: bytes | None = None
) -> Ensemble:
    """Raises ValueError for bytes that were changed, cut off, or written for other features."""
    manifest, parts = _verified(artifact, key)
    if manifest["features"] != _FEATURES_HASH:
        raise ValueError("a model artefact of another version of the features")
    lstm = parts.get("lstm.safetensors")
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(parts["gbdt.txt.z"], _MAX_TEXT_BYTES)
    return Ensemble(
        version=manifest["version"],
        forest=Forest(text.decode()),
        calibration=Calibration.from_json(json.loads(parts["calibration.json"])),
        lstm=LstmModel.from_bytes(lstm) if lstm is not None else None,
        false_alarms_per_week=false_alarms_per_week,
        window_ms=window_ms,
        metadata=manifest["metadata"],
    )
