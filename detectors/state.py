"""What scoring remembers per series: one float32 row, struct-of-arrays over the series.

A row is [baselines | alarm | LSTM]. The first two belong to the format below; the LSTM's part belongs to
one model version and is dropped (zeros: a fresh start) when another version reads the bytes.

As bytes a row is what sets it apart from that of a series never seen: most logs lack half of the channels.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import crc32c
import numpy as np
import numpy.typing as npt
from numba import njit

from detectors.baseline import new_row
from detectors.channels import CHANNELS, N_METRICS
from detectors.layout import STATE_WIDTH as BASELINE_WIDTH
from detectors.layout import WIDTH_BEFORE_WEEKS
from detectors.types import Float32, Int64

ALARM_WIDTH = 16  # see detectors/calibration.py
FIXED_WIDTH = BASELINE_WIDTH + ALARM_WIDTH
_WHOLE, _BYTES, _FORMAT = 1, 2, 3
"""1 holds every number of the row, 2 has marks filled up to bytes; both are sealed with SHA-256."""
_HEADER = struct.Struct("<4sBI8sHH")  # magic, format, layout, LSTM version, LSTM width, names
_CHECK = struct.Struct("<II")  # between header and body: the CRC-32C of both, bytes of the body
_MAGIC = b"iwst"


def _layout(baseline_width: int) -> int:
    shape = (CHANNELS, baseline_width + ALARM_WIDTH)
    return int.from_bytes(hashlib.sha256(repr(shape).encode()).digest()[:4], "little")


_LAYOUT = _layout(BASELINE_WIDTH)
_WIDTHS = {_LAYOUT: BASELINE_WIDTH, _layout(WIDTH_BEFORE_WEEKS): WIDTH_BEFORE_WEEKS}
"""Layouts that are read -> numbers of the baselines; what an older one lacks starts as in a new series."""

_BLOCK = 256  # rows that are packed together
UInt32 = npt.NDArray[np.uint32]


@njit(cache=True, nogil=True)
def _pack(data: UInt32, rows: Int64, fresh: UInt32, packed: UInt32, ends: Int64) -> None:
    """Some rows as bytes, one behind the other, into `packed`: the bits of the numbers that differ from
    `fresh` [width], the lowest first, filled up to whole words, then these numbers.

    ends [m]: the word of `packed` at which each row ends.
    """
    words, n = (len(fresh) + 31) // 32, 0
    for i in range(len(rows)):
        row, marks = data[rows[i]], n
        n += words
        for word in range(words):
            first, bits = 32 * word, np.uint32(0)
            for bit in range(min(32, len(fresh) - first)):
                number = row[first + bit]
                packed[n] = number  # overwritten by the next one unless it differs
                differs = number != fresh[first + bit]
                bits |= np.uint32(differs) << np.uint32(bit)
                n += differs
            packed[marks + word] = bits
        ends[i] = n


def _checksum(version: int, head: bytes, body: bytes) -> bytes:
    if version == _FORMAT:
        return _CHECK.pack(crc32c.crc32c(body, crc32c.crc32c(head)), len(body))
    return hashlib.sha256(head + body).digest()[: _CHECK.size]


def _fresh(lstm_width: int) -> Float32:
    """The row of a series that was never seen."""
    row: Float32 = np.zeros(FIXED_WIDTH + lstm_width, np.float32)
    new_row(row[:BASELINE_WIDTH])
    return row


class SeriesStates:
    """States of many series; `rows` maps names to rows of `data` and makes rows for new names."""

    def __init__(self, lstm_width: int = 0, lstm_version: str = "") -> None:
        self.lstm_width = lstm_width
        self._lstm_tag = hashlib.sha256(lstm_version.encode()).digest()[:8]
        self.data: Float32 = np.zeros((16, FIXED_WIDTH + lstm_width), np.float32)
        self._fresh = _fresh(lstm_width)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._metrics: dict[int, dict[str, int]] = {}  # row -> metric name -> slot
        self._known: tuple[list[str], Int64] | None = None

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, series: object) -> bool:
        return series in self._row_of

    def rows(self, series: list[str]) -> Int64:
        """Rows of `series`, made where they are new. The same list object is answered from memory."""
        if self._known is not None and self._known[0] == series:
            return self._known[1]
        self._add([name for name in series if name not in self._row_of])
        rows = np.array([self._row_of[name] for name in series], dtype=np.int64)
        self._known = (list(series), rows)
        return rows

    def peek(self, series: list[str]) -> tuple[SeriesStates, Int64]:
        """A copy of just these series, to compute on without changing anything."""
        copy = SeriesStates(self.lstm_width)
        copy._lstm_tag = self._lstm_tag
        rows = copy.rows(series)
        for name, row in zip(series, rows.tolist(), strict=True):
            mine = self._row_of.get(name)
            if mine is not None:
                copy.data[row] = self.data[mine]
                copy._metrics[row] = dict(self._metrics.get(mine, {}))
        return copy, rows

    def metric_slots(self, rows: Int64, names: list[str]) -> Int64:
        """[m, len(names)]: the slot of each user metric, -1 where a series has no room left."""
        slots = np.full((len(rows), len(names)), -1, np.int64)
        for i, row in enumerate(rows.tolist()):
            mine = self._metrics.setdefault(row, {})
            for k, name in enumerate(names):
                slot = mine.get(name)
                if slot is None and len(mine) < N_METRICS:
                    slot = mine[name] = len(mine)
                if slot is not None:
                    slots[i, k] = slot
        return slots

    def metric_names(self, row: int) -> dict[int, str]:
        """Slot -> name of the user metrics of a row."""
        return {slot: name for name, slot in self._metrics.get(row, {}).items()}

    def adopt(self, lstm_width: int, lstm_version: str) -> None:
        """Make room for another LSTM; the states of the one before start afresh."""
        tag = hashlib.sha256(lstm_version.encode()).digest()[:8]
        if tag == self._lstm_tag and lstm_width == self.lstm_width:
            return
        wider = np.zeros((len(self.data), FIXED_WIDTH + lstm_width), np.float32)
        wider[:, :FIXED_WIDTH] = self.data[:, :FIXED_WIDTH]
        self.data, self.lstm_width, self._lstm_tag = wider, lstm_width, tag
        self._fresh = _fresh(lstm_width)

    def dump(self, series: str) -> bytes:
        """The state of `series`. Raises KeyError for an unknown one."""
        return self.dump_all([series])[0]

    def dump_all(self, series: Sequence[str]) -> list[bytes]:
        """The states of many series, 2 to 13 KB each. Raises KeyError for an unknown one."""
        rows = np.array([self._row_of[name] for name in series], np.int64)
        data, fresh = self.data.view(np.uint32), self._fresh.view(np.uint32)
        width, found = len(fresh), []
        words = (width + 31) // 32
        packed, ends = np.empty(_BLOCK * (words + width) + 1, np.uint32), np.empty(_BLOCK, np.int64)
        without_metrics = self._head({})
        for block in range(0, len(rows), _BLOCK):
            some = rows[block : block + _BLOCK]
            _pack(data, some, fresh, packed, ends)
            start, whole = 0, packed.astype("<u4", copy=False).data.cast("B")
            for row, end in zip(some.tolist(), (4 * ends).tolist(), strict=False):
                own = self._metrics.get(row)
                head, head_crc, names = self._head(own) if own else without_metrics
                check = crc32c.crc32c(names, crc32c.crc32c(whole[start:end], head_crc))
                size = end - start + len(names)
                found.append(b"".join((head, _CHECK.pack(check, size), whole[start:end], names)))
                start = end
        return found

    def _head(self, metrics: dict[str, int]) -> tuple[bytes, int, bytes]:
        """(what a state begins with, its CRC-32C, what it ends with)."""
        head = _HEADER.pack(_MAGIC, _FORMAT, _LAYOUT, self._lstm_tag, self.lstm_width, len(metrics))
        return head, crc32c.crc32c(head), "\0".join(sorted(metrics, key=metrics.__getitem__)).encode()

    def load(self, series: str, state: bytes) -> None:
        """Restore what `dump` wrote, bit for bit. Raises ValueError for any other bytes."""
        start = _HEADER.size + _CHECK.size
        if len(state) < start:
            raise ValueError("a series state ends inside its header")
        magic, version, layout, tag, lstm_width, count = _HEADER.unpack_from(state)
        if magic != _MAGIC or version not in (_WHOLE, _BYTES, _FORMAT) or layout not in _WIDTHS:
            raise ValueError("a series state of another format")
        body = state[start:]
        if _checksum(version, state[: _HEADER.size], body) != state[_HEADER.size : start]:
            raise ValueError("a series state is damaged")
        own = _WIDTHS[layout]
        width = own + ALARM_WIDTH + lstm_width
        marked = np.arange(width)
        if version != _WHOLE:
            marks = (width + 31) // 32 * 4 if version == _FORMAT else (width + 7) // 8
            bits = np.unpackbits(np.frombuffer(body[:marks], np.uint8), bitorder="little")
            marked, body = np.flatnonzero(bits), body[marks:]
        if len(body) < 4 * len(marked):
            raise ValueError("a series state is damaged")
        numbers, names = np.frombuffer(body, "<f4", len(marked)), body[4 * len(marked) :].decode()
        if series not in self._row_of:
            self._add([series])
        row = self._row_of[series]
        self.data[row] = self._fresh
        marked = np.where(marked < own, marked, marked + BASELINE_WIDTH - own)
        same_lstm = tag == self._lstm_tag and lstm_width == self.lstm_width
        kept = marked < FIXED_WIDTH + (lstm_width if same_lstm else 0)
        self.data[row, marked[kept]] = numbers[kept]
        listed = names.split("\0") if count else []
        self._metrics[row] = {name: slot for slot, name in enumerate(listed)}

    def drop(self, series: str) -> None:
        """Forget a series; an unknown one is no error."""
        row = self._row_of.pop(series, None)
        self._known = None
        if row is not None:
            self._metrics.pop(row, None)
            self._free.append(row)

    def _add(self, new: list[str]) -> None:
        """Rows for names that have none: those that others left first. Many at once cost little each."""
        if not new:
            return
        self._known = None
        used = len(self._row_of) + len(self._free)
        left = [self._free.pop() for _ in range(min(len(self._free), len(new)))]
        rows = [*left, *range(used, used + len(new) - len(left))]
        if rows[-1] >= len(self.data):
            grown = np.zeros((max(2 * len(self.data), rows[-1] + 1), self.data.shape[1]), np.float32)
            grown[:used] = self.data[:used]
            self.data = grown
        self._row_of.update(zip(new, rows, strict=True))
        self.data[rows] = self._fresh
