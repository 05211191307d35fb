"""Where simulated logs go: a file or a Kafka topic, at once or at the pace of the clock."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol, cast

import numpy as np

from monitor.clock import Clock
from monitor.errors import InferwatchError


class Sink(Protocol):
    def write(self, keys: list[bytes], lines: list[bytes]) -> None:
        """Hand records on, in order. Raises InferwatchError if they cannot be."""
        ...


def open_sink(out: Path | None, topic: str | None, bootstrap_servers: str, stack: ExitStack) -> Sink:
    """A file (packed if its name ends in .gz) or else a topic; `stack` closes it."""
    if out is not None:
        return _FileSink(stack.enter_context(_open_file(out)))
    assert topic is not None
    sink = _KafkaSink(bootstrap_servers, topic)
    stack.callback(sink.close)
    return sink


def _open_file(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(path, "wb", compresslevel=9, mtime=0))
    return path.open("wb")


class _FileSink:
    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, keys: list[bytes], lines: list[bytes]) -> None:
        if lines:
            self.file.write(b"\n".join(lines) + b"\n")
            self.file.flush()


class _KafkaSink:
    """Keyed by series, so that a series lives in one partition and keeps its order."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        from kafka import KafkaProducer
        from kafka.errors import KafkaError

        self.topic, self.error = topic, KafkaError
        self.failure: BaseException | None = None
        try:
            self.producer = KafkaProducer(
                bootstrap_servers=bootstrap_servers.split(","), acks="all", linger_ms=20, batch_size=262_144
            )
        except KafkaError as error:
            raise InferwatchError(f"no broker at {bootstrap_servers}: {error}") from None

    def write(self, keys: list[bytes], lines: list[bytes]) -> None:
        try:
            for key, line in zip(keys, lines, strict=True):
                self.producer.send(self.topic, line, key=key).add_errback(self._failed)
            self.producer.flush(timeout=60)
        except self.error as error:
            raise InferwatchError(f"writing to topic {self.topic}: {error}") from None
        if self.failure is not None:
            raise InferwatchError(f"writing to topic {self.topic}: {self.failure}")

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    def close(self) -> None:
        self.producer.close(timeout=5)


def pace(sink: Sink, clock: Clock, stop: threading.Event) -> Callable[[list[bytes], list[bytes]], None]:
    """Hands records on when the clock has reached their time, about once per second."""

    def write(keys: list[bytes], lines: list[bytes]) -> None:
        due = np.array([int(line[13 : line.index(b",")]) for line in lines], np.int64)
        done = 0
        while done < len(lines) and not stop.is_set():
            ready = int(np.searchsorted(due, clock.now_ms(), side="right"))
            if ready > done:
                sink.write(keys[done:ready], lines[done:ready])
                done = ready
            if done < len(lines):
                stop.wait(1.0)

    return write
