"""Decompression with a limit: a small batch that unpacks to gigabytes is an error, not the process's end.

kafka-python 3.0.12 unpacks a batch in one call without a limit (500 MB of zeros in one gzip message took
1.5 GB). `install` puts bounded functions in the place of the ones it calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from kafka import codec
from kafka.record import default_records, legacy_records

MAX_BATCH_BYTES = 64 << 20
GZIP_BITS = 31  # zlib: a gzip header, the largest window


class CompressionBombError(Exception):
    """A batch unpacks to more than MAX_BATCH_BYTES."""


def install() -> None:
    """Bound every codec of the client; calling it again changes nothing."""
    bounded: dict[str, Callable[[Any], bytes]] = {
        "gzip_decode": gzip,
        "zstd_decode": zstd,
        "snappy_decode": snappy,
    }
    if codec.lz4 is not None:
        bounded["lz4_decode"] = lz4
    for module in (default_records, legacy_records):
        for name, function in bounded.items():
            if hasattr(module, name):
                setattr(module, name, function)


def gzip(payload: Any) -> bytes:
    """Every member of a gzip stream. Raises CompressionBombError, zlib.error."""
    return _frames(payload, lambda: zlib.decompressobj(GZIP_BITS))


def lz4(payload: Any) -> bytes:
    """Every frame of an LZ4 stream. Raises CompressionBombError, RuntimeError."""
    return _frames(payload, codec.lz4.LZ4FrameDecompressor)


def _frames(payload: Any, new: Callable[[], Any]) -> bytes:
    rest, parts, room = bytes(payload), [], MAX_BATCH_BYTES
    while rest:
        frame = new()
        part = frame.decompress(rest, room + 1)
        room -= len(part)
        if room < 0:
            raise CompressionBombError(f"more than {MAX_BATCH_BYTES} bytes")
        if not frame.eof:
            raise ValueError("the compressed data end early")
        parts.append(part)
        rest = frame.unused_data or b""
    return b"".join(parts)


def zstd(payload: Any) -> bytes:
    """Every frame of a zstd stream. Raises CompressionBombError, zstandard.ZstdError, NotImplementedError."""
    if codec.zstd is None:
        raise NotImplementedError("zstandard is not installed")
    size = codec.zstd.frame_content_size(bytes(payload[:18]))  # a frame's header is no longer
    if size > MAX_BATCH_BYTES:
        raise CompressionBombError(f"{size} bytes, more than {MAX_BATCH_BYTES}")
    limits = codec.zstd.ZstdDecompressor(max_window_size=MAX_BATCH_BYTES)
    with limits.stream_reader(bytes(payload), read_across_frames=True) as reader:
        found: bytes = reader.read(MAX_BATCH_BYTES + 1)
    if len(found) > MAX_BATCH_BYTES:
        raise CompressionBombError(f"more than {MAX_BATCH_BYTES} bytes")
    return found


def snappy(payload: Any) -> bytes:
    """A snappy block or a stream of them; each says its length first. Raises CompressionBombError."""
    data, xerial = bytes(payload), codec._detect_xerial_stream(payload)
    at, size = (16, 0) if xerial else (0, _varint(data))
    while xerial and at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        size += _varint(data[at + 4 : at + 14])
        at += 4 + length
    if size > MAX_BATCH_BYTES:
        raise CompressionBombError(f"{size} bytes, more than {MAX_BATCH_BYTES}")
    unpacked: bytes = codec.snappy_decode(data)
    return unpacked


def _varint(data: bytes) -> int:
    value = 0
    for i, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            break
    return value
