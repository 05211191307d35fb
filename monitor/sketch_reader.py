"""Sketches: the aggregate of one window as bytes, so that late records can be merged into it.

Little-endian: a header, a mask of the numbers that say something and these, the grid, then the entries of
histograms, keys, pairs, slices and metrics; counts take as many bytes each as the largest needs.
monitor.sketch_writer makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from monitor.sketches import (
    GRID_CELLS,
    HISTOGRAMS,
    SUMS,
    Aggregate,
    Float64,
    Histograms,
    Int64,
    Slices,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
)

FORMAT = 4  # up to 3 it was an array of msgpack
HEADER = struct.Struct("<BBBBHHII")
"""Format, is a new model version, bytes of a count in histograms, in slices, slices, metrics, keys, pairs."""
GRID_BYTES, MASK_BYTES = GRID_CELLS // 8, 8
SILENT = np.array([0.0] * len(SUMS) + [np.inf] * HISTOGRAMS + [-np.inf] * (HISTOGRAMS + 1))
"""The sums, minima and maxima of no records."""
_KINDS = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}  # of counts, by bytes each
N_NUMBERS = len(SILENT)
assert N_NUMBERS <= 8 * MASK_BYTES


class _Reader:
    """Walks through the bytes of a sketch. Raises ValueError where they end too early."""

    def __init__(self, stored: bytes, at: int) -> None:
        self._stored, self._at = stored, at

    def bytes(self, size: int) -> bytes:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._stored):
            raise ValueError(f"a sketch that ends after {len(self._stored)} bytes")
        return self._stored[begin : self._at]

    def array(self, kind: str, n: int) -> npt.NDArray[Any]:
        return _array(self.bytes(n * np.dtype(kind).itemsize), kind)

    def texts(self, n: int) -> list[str]:
        return [self._text(size) for size in self.array("<u4", n).tolist()]

    def text(self) -> str:
        return self._text(int(self.array("<u4", 1)[0]))

    def _text(self, size: int) -> str:
        return self.bytes(size).decode("utf-8", "surrogatepass")

    def end(self) -> None:
        if self._at != len(self._stored):
            raise ValueError(f"a sketch of {len(self._stored)} bytes that ends at {self._at}")


def _array(stored: bytes, kind: str) -> npt.NDArray[Any]:
    """An own, writable array: compiled code tells it from one that may only be read."""
    return np.frombuffer(bytearray(stored), kind)


def decode(sketch: bytes) -> tuple[Aggregate, bool]:
    """Bytes of `encode` -> (Aggregate of one row, new_version). Raises ValueError for anything else."""
    if sketch[:1] != bytes([FORMAT]):
        return _decode_msgpack(sketch)
    if len(sketch) < HEADER.size:
        raise ValueError(f"a sketch of {len(sketch)} bytes")
    _, is_new, in_buckets, in_slices, n_slices, n_metrics, n_keys, n_pairs = HEADER.unpack_from(sketch)
    if not {in_buckets, in_slices} <= _KINDS.keys():
        raise ValueError(f"a sketch with counts of {in_buckets} and {in_slices} bytes")
    reader = _Reader(sketch, HEADER.size)
    said = np.unpackbits(reader.array("u1", MASK_BYTES), bitorder="little").astype(np.bool_)
    if said[N_NUMBERS:].any():
        raise ValueError("a sketch with other fields")
    numbers = SILENT.copy()
    numbers[said[:N_NUMBERS]] = reader.array("<f8", int(said.sum()))
    grid = reader.array("u1", GRID_BYTES)
    sizes = reader.array("<u2", HISTOGRAMS)
    buckets = reader.array("<u2", int(sizes.sum()))
    bucket_counts = reader.array(_KINDS[in_buckets], len(buckets))
    keys, pairs = reader.array("<u8", n_keys), reader.array("<u4", n_pairs)
    fields = reader.array("u1", n_slices)
    counts = reader.array(_KINDS[in_slices], 3 * n_slices).astype(np.int64).reshape(-1, 3)
    slices = _slices(fields, counts, reader.array("<f8", n_slices), reader.texts(n_slices))
    metrics = [(*reader.array("<f8", 2).tolist(), reader.text()) for _ in range(n_metrics)]
    reader.end()
    histograms = sizes, buckets, bucket_counts
    named = [(name, total, n) for total, n, name in metrics]
    return _aggregate(numbers, grid, histograms, keys, pairs, slices, named), bool(is_new)


def _slices(fields: UInt8, counts: Int64, latency: Float64, texts: list[str]) -> Slices:
    """Of one row."""
    ids = np.arange(len(texts), dtype=np.int32)
    return Slices(np.array([0, len(texts)]), fields, ids, counts, latency, texts)


def _aggregate(
    numbers: Float64,
    grid: UInt8,
    histograms: tuple[UInt16, UInt16, npt.NDArray[np.integer]],
    keys: UInt64,
    pairs: UInt32,
    slices: Slices,
    metrics: Sequence[tuple[str, float, float]],
) -> Aggregate:
    """One row. histograms: how many buckets each has, these, their counts; metrics: name, sum, count."""
    sums, minima, maxima = np.split(numbers.reshape(1, -1), [len(SUMS), len(SUMS) + HISTOGRAMS], axis=1)
    sizes, buckets, counts = histograms
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return Aggregate(
        sums=sums,
        minima=minima,
        maxima=maxima,
        grid=np.unpackbits(grid).reshape(1, GRID_CELLS),
        histograms=Histograms(bounds, buckets, counts.astype(np.uint32)),
        key_bounds=np.array([0, len(keys)]),
        keys=keys,
        pair_bounds=np.array([0, len(pairs)]),
        pairs=pairs,
        slices=slices,
        metric_names=[name for name, _, _ in metrics],
        metric_sums=np.array([[total for _, total, _ in metrics]], dtype=np.float64),
        metric_counts=np.array([[count for _, _, count in metrics]], dtype=np.float64),
    )


class _Packed(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A sketch of format 2 or 3, which a database may still hold for as long as windows are amended."""

    version: int
    new_version: bool
    numbers: bytes
    grid: bytes
    sizes: bytes
    buckets: bytes
    counts: bytes
    keys: bytes
    pairs: bytes
    slice_fields: bytes
    slice_counts: bytes
    slice_latency: bytes
    slice_texts: list[str]
    metrics: list[tuple[str, float, float]]


_decoder = msgspec.msgpack.Decoder(_Packed)


def _widened(stored: bytes, n: int) -> npt.NDArray[np.integer]:
    """n counts, in as many bytes each as there are."""
    kind = _KINDS.get(len(stored) // n if n else 1)
    if kind is None:
        raise ValueError(f"sketch with {n} counts in {len(stored)} bytes")
    return _array(stored, kind)


def _decode_msgpack(sketch: bytes) -> tuple[Aggregate, bool]:
    try:
        stored = _decoder.decode(sketch)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a sketch: {error}") from None
    if stored.version not in (2, 3):
        raise ValueError(f"sketch of format {stored.version}")
    numbers, sizes, buckets = (
        _array(each, kind)
        for each, kind in ((stored.numbers, "<f8"), (stored.sizes, "<u2"), (stored.buckets, "<u2"))
    )
    if len(numbers) != N_NUMBERS or len(sizes) != HISTOGRAMS:
        raise ValueError("sketch with other fields")
    texts = stored.slice_texts
    slices = _slices(
        _array(stored.slice_fields, "u1"),
        _widened(stored.slice_counts, 3 * len(texts)).astype(np.int64).reshape(-1, 3),
        _array(stored.slice_latency, "<f8"),
        texts,
    )
    histograms = sizes, buckets, _widened(stored.counts, len(buckets))
    keys, pairs = _array(stored.keys, "<u8"), _array(stored.pairs, "<u4")
    grid = _array(stored.grid, "u1")
    aggregate = _aggregate(numbers, grid, histograms, keys, pairs, slices, stored.metrics)
    return aggregate, stored.new_version
