"""Log files and standard input, one message per line; .gz and .zst are unpacked on the way."""

from __future__ import annotations

import gzip
import io
import os
import select
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources.base import (
    FILE_PREFIX,
    Assigned,
    EndOfLog,
    Event,
    Partition,
    Progress,
    RawBatch,
    Undecodable,
)
from monitor.sources.batches import cut

BLOCK_BYTES = 4 << 20
STDIN = "-"


class _Lines:
    """One file as batches of lines. Offsets are line numbers; empty lines are passed over."""

    def __init__(self, path: str, partition: Partition, max_line_bytes: int) -> None:
        self.path, self.partition, self.max_line_bytes = path, partition, max_line_bytes
        self.size = 0 if path == STDIN else os.path.getsize(path)
        self.started = self.paused = self.ended = False
        self.raw: BinaryIO | None = None  # as it lies on disk
        self._stream: Any = None  # unpacked
        self._first = 0  # where handing out begins
        self.position = 0
        self._reset()

    def _reset(self) -> None:
        self.position = self._line = 0  # next to hand out; next to be split off
        self._carry = b""  # the beginning of a line whose end has not been read
        self._dropping = False  # inside a line that is too large: its beginning is in _carry
        self._ready: RawBatch | None = None
        self._damage: ValueError | None = None  # met behind what was read last

    def start(self, offset: int) -> None:
        if self.path == STDIN and self.raw is not None:
            if offset < self.position:
                raise SourceError("standard input cannot be read twice; write it to a file")
        else:
            self.close()
            self._reset()
            self._open()
        self._first = offset
        self.started, self.paused, self.ended = True, False, False

    def _open(self) -> None:
        if self.path == STDIN:
            self.raw = self._stream = sys.stdin.buffer
            return
        self.raw = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._stream = self.raw
        if self.path.endswith(".gz"):
            self._stream = gzip.GzipFile(fileobj=self.raw)
        elif self.path.endswith(".zst"):
            try:
                import zstandard
            except ImportError:
                raise SourceError(f"{self.path}: .zst files need the extra `compression`") from None
            self._stream = zstandard.ZstdDecompressor().stream_reader(self.raw, read_across_frames=True)

    def _read(self, timeout_s: float) -> bytes | None:
        """The next bytes, b"" at the end, None if there are none yet. Raises ValueError if damaged."""
        if self.path == STDIN:
            fd = self._stream.fileno()
            ready, _, _ = select.select([fd], [], [], timeout_s)
            return os.read(fd, BLOCK_BYTES) if ready else None
        if self.path.endswith(".gz"):
            return self._read_gzip()
        try:
            found = self._stream.read(BLOCK_BYTES)
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror or error}") from error
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise ValueError(str(error)) from error
            raise
        return bytes(found)

    def _read_gzip(self) -> bytes:
        """Gathers a block, as the stream gives 64 KiB at a time. What precedes a damage comes first."""
        parts: list[bytes] = []
        size = 0
        while size < BLOCK_BYTES and self._damage is None:
            try:
                part = self._stream.read1(BLOCK_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self._damage = ValueError(str(error))
            except OSError as error:
                raise SourceError(f"{self.path}: {error.strerror or error}") from error
            else:
                if not part:
                    break
                parts.append(part)
                size += len(part)
        if self._damage is not None and not parts:
            raise self._damage
        return b"".join(parts)

    def poll(self, timeout_s: float, max_records: int) -> Event | None:
        """The next batch or the end; None if there is nothing yet."""
        while self._ready is None:
            try:
                block = self._read(timeout_s)
            except ValueError:
                self.ended = True
                return Undecodable(self.partition, self._line, self._line + 1, "corrupt_batch")
            if block is None:
                return None
            if block == b"" and not self._carry:
                self.ended = True
                break
            self._split(block)
        if self._ready is None:
            if self._first > self._line:
                raise SourceError(
                    f"{self.path} has {self._line} lines, fewer than the {self._first} already read: "
                    "it is not the file it was"
                )
            return EndOfLog(self.partition)
        batch, self._ready = self._ready, None
        if len(batch) > max_records:
            self._ready = cut(batch, max_records, len(batch))
            batch = cut(batch, 0, max_records)
        self.position = batch.next_offset
        return batch

    def _split(self, block: bytes) -> None:
        """Cut carry + block into lines; sets _ready to those at or behind the start, if any."""
        from monitor.sources.cutting import count_lines, cut_lines

        end_of_file = block == b""
        if self._dropping and not end_of_file:
            newline = block.find(b"\n")
            if newline < 0:
                return
            block = block[newline:]
        buffer = self._carry + (b"\n" if end_of_file else block)
        self._carry, self._dropping = b"", False
        data = np.frombuffer(buffer, np.uint8)
        lines = count_lines(data)
        offsets, starts, ends = (np.empty(lines, np.int64) for _ in range(3))
        kept, tail = cut_lines(data, self._line, self._first, offsets, starts, ends)
        self._carry = buffer[tail : tail + self.max_line_bytes + 2]
        self._dropping = len(buffer) - tail > self.max_line_bytes + 2
        self._line += lines
        self.position = max(self.position, min(self._first, self._line))
        if kept:
            rows = slice(0, kept)
            self._ready = RawBatch(
                self.partition, offsets[rows], buffer, starts[rows], ends[rows], self._line
            )
        elif lines:
            self.position = self._line

    def bytes_read(self) -> int:
        try:
            return self.raw.tell() if self.raw is not None and self.path != STDIN else 0
        except (ValueError, io.UnsupportedOperation):
            return self.size

    def close(self) -> None:
        if self.raw is not None and self.path != STDIN:
            self._stream.close()
            self.raw.close()
            self.raw = None


class FileSource:
    """Files, read once from front to back; "-" is standard input.

    A file is partition 0 of the topic "file:" + its base name (files of one name are numbered in the
    given order). Where to begin is always the first line: files have no "latest".
    Raises SourceError for a file that is missing or unreadable.
    """

    def __init__(self, paths: Sequence[Path | str], settings: SourceSettings) -> None:
        self._logs: dict[Partition, _Lines] = {}
        seen: Counter[str] = Counter()
        for path in map(str, paths):
            topic = FILE_PREFIX + os.path.basename(path)
            partition = Partition(topic, seen[topic])
            seen[topic] += 1
            if path != STDIN and not (os.path.isfile(path) and os.access(path, os.R_OK)):
                raise SourceError(f"{path}: no such file, or it may not be read")
            self._logs[partition] = _Lines(path, partition, settings.max_record_bytes)
        self._events: list[Event] = [Assigned(partition) for partition in self._logs]

    def poll(self, timeout_s: float, max_records: int = 50_000) -> list[Event]:
        events, self._events = self._events, []
        if events:
            return events
        active = [log for log in self._logs.values() if log.started and not log.paused and not log.ended]
        for log in active:
            event = log.poll(timeout_s / len(active), max_records)
            if event is None:
                continue
            events.append(event)
            if isinstance(event, Undecodable):
                events.append(EndOfLog(log.partition))
            max_records -= len(event) if isinstance(event, RawBatch) else 0
            if max_records <= 0:
                self._logs[log.partition] = self._logs.pop(log.partition)  # the others come first next time
                break
        if not active:
            time.sleep(timeout_s)
        return events

    def start(self, partition: Partition, offset: int | None) -> None:
        self._logs[partition].start(offset or 0)

    def pause(self, partition: Partition) -> None:
        self._logs[partition].paused = True

    def resume(self, partition: Partition) -> None:
        self._logs[partition].paused = False

    def commit(self, offsets: dict[Partition, int]) -> None:
        """Files have nobody to tell."""

    def progress(self) -> dict[Partition, Progress]:
        return {
            partition: Progress(log.position, log.position if log.ended else None, log.paused)
            for partition, log in self._logs.items()
            if log.started
        }

    def bytes_read(self) -> tuple[int, int]:
        """Bytes read of all files, as they lie on disk, and their sizes; standard input counts 0."""
        logs = self._logs.values()
        return sum(log.size if log.ended else log.bytes_read() for log in logs), sum(log.size for log in logs)

    def away_s(self) -> float:
        return 0.0

    def close(self, timeout_s: float = 5.0) -> None:
        for log in self._logs.values():
            log.close()
