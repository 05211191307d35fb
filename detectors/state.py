"""What scoring remembers per series: one float32 row, struct-of-arrays over the series.

A row is [baselines | alarm | LSTM]. The first two belong to the format below; the LSTM's part belongs to
one model version and is dropped (zeros: a fresh start) when another version reads the bytes.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from detectors.baseline import new_row
from detectors.channels import CHANNELS, N_METRICS
from detectors.layout import STATE_WIDTH as BASELINE_WIDTH
from detectors.types import Float32, Int64

ALARM_WIDTH = 16  # see detectors/calibration.py
FIXED_WIDTH = BASELINE_WIDTH + ALARM_WIDTH
_FORMAT = 1
_HEADER = struct.Struct("<4sBI8sHH")  # magic, format, layout, LSTM version, LSTM width, names
_CHECK_BYTES = 8  # of SHA-256 over header and body, between the two
_MAGIC = b"iwst"
_LAYOUT = int.from_bytes(hashlib.sha256(repr((CHANNELS, FIXED_WIDTH)).encode()).digest()[:4], "little")


def _checksum(head: bytes, body: bytes) -> bytes:
    return hashlib.sha256(head + body).digest()[:_CHECK_BYTES]


class SeriesStates:
    """States of many series; `rows` maps names to rows of `data` and makes rows for new names."""

    def __init__(self, lstm_width: int = 0, lstm_version: str = "") -> None:
        self.lstm_width = lstm_width
        self._lstm_tag = hashlib.sha256(lstm_version.encode()).digest()[:8]
        self.data: Float32 = np.zeros((16, FIXED_WIDTH + lstm_width), np.float32)
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
        row_of = self._row_of
        rows = np.array([row_of[s] if s in row_of else self._add(s) for s in series], dtype=np.int64)
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

    def dump(self, series: str) -> bytes:
        """The state of `series`, about 10 KB and the LSTM's part. Raises KeyError for an unknown one."""
        row = self._row_of[series]
        names = sorted(self._metrics.get(row, {}), key=lambda name: self._metrics[row][name])
        body: bytes = self.data[row].astype("<f4").tobytes() + "\0".join(names).encode()
        head: bytes = _HEADER.pack(_MAGIC, _FORMAT, _LAYOUT, self._lstm_tag, self.lstm_width, len(names))
        return head + _checksum(head, body) + body

    def load(self, series: str, state: bytes) -> None:
        """Restore what `dump` wrote, bit for bit. Raises ValueError for any other bytes."""
        start = _HEADER.size + _CHECK_BYTES
        if len(state) < start:
            raise ValueError("a series state ends inside its header")
        magic, version, layout, tag, lstm_width, count = _HEADER.unpack_from(state)
        if (magic, version, layout) != (_MAGIC, _FORMAT, _LAYOUT):
            raise ValueError("a series state of another format")
        width = FIXED_WIDTH + lstm_width
        body = state[start:]
        if len(body) < 4 * width or _checksum(state[: _HEADER.size], body) != state[_HEADER.size : start]:
            raise ValueError("a series state is damaged")
        numbers = np.frombuffer(body, "<f4", width)
        names = body[4 * width :].decode().split("\0") if count else []
        row = self._row_of[series] if series in self._row_of else self._add(series)
        self.data[row] = 0.0
        self.data[row, :FIXED_WIDTH] = numbers[:FIXED_WIDTH]
        if tag == self._lstm_tag and lstm_width == self.lstm_width:
            self.data[row, FIXED_WIDTH:] = numbers[FIXED_WIDTH:]
        self._metrics[row] = {name: slot for slot, name in enumerate(names)}

    def drop(self, series: str) -> None:
        """Forget a series; an unknown one is no error."""
        row = self._row_of.pop(series, None)
        self._known = None
        if row is not None:
            self._metrics.pop(row, None)
            self._free.append(row)

    def _add(self, series: str) -> int:
        self._known = None
        if self._free:
            row = self._free.pop()
        else:
            row = len(self._row_of)
            if row == len(self.data):
                grown = np.zeros((2 * row, self.data.shape[1]), np.float32)
                grown[:row] = self.data
                self.data = grown
        self._row_of[series] = row
        self.data[row] = 0.0
        new_row(self.data[row, :BASELINE_WIDTH])
        return row
