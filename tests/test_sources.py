"""The contract of `Source`, run on every implementation; Kafka is a real broker."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.config import SourceSettings
from monitor.errors import SourceError
from monitor.sources import cutting
from monitor.sources.base import Assigned, EndOfLog, Event, Gap, Partition, RawBatch, Source, Undecodable
from monitor.sources.batches import cut, pack
from monitor.sources.file import FileSource
from monitor.sources.memory import MemorySource
from monitor.sources.opening import kafka_source
from tests import services

MESSAGES = [b'{"n":%d}' % n for n in range(200)]


class Make(Protocol):
    def __call__(self, values: list[bytes | None], **settings: object) -> Source: ...


KAFKA = [
    pytest.param(f"kafka {reader}", marks=pytest.mark.kafka) for reader in ("batches", "poll", "confluent")
]


@pytest.fixture(params=["memory", "file", *KAFKA])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Puts values into a new log of one partition and opens a source on it."""
    opened: list[Source] = []

    def build(values: list[bytes | None], **settings: object) -> Source:
        source: Source
        if kind == "memory":
            partition = Partition("memory", 0)
            rows = pack(partition, range(len(values)), values)
            source = MemorySource([cut(rows, 0, 120), cut(rows, 120, 200)] if len(values) == 200 else [rows])
        elif kind == "file":
            path = tmp_path / "log.jsonl"
            path.write_bytes(b"\n".join(value or b"" for value in values) + b"\n")
            source = FileSource([path], SourceSettings(kind="file", **settings))
        else:
            bootstrap = request.getfixturevalue("kafka_bootstrap")
            topic = services.create_topic(bootstrap)
            services.produce(bootstrap, topic, values)
            reader = kind.removeprefix("kafka ")
            source = kafka_source(kafka_settings(bootstrap, topic, **{"reader": reader, **settings}))
        opened.append(source)
        return source

    yield build
    for source in opened:
        source.close()


def kafka_settings(bootstrap: str, topic: str, **settings: object) -> SourceSettings:
    values = {"bootstrap_servers": bootstrap, "topics": [topic], "group_id": topic, "session_timeout_s": 30.0}
    return SourceSettings.model_validate({**values, **settings})


def until(source: Source, done: Callable[[list[Event]], bool], timeout_s: float = 30.0) -> list[Event]:
    """Poll until `done(all events so far)`."""
    events: list[Event] = []
    deadline = time.monotonic() + timeout_s
    while not done(events):
        assert time.monotonic() < deadline, f"only {events}"
        events += source.poll(0.1, 64)
    return events


def assigned(source: Source) -> Partition:
    events = until(source, lambda es: any(isinstance(e, Assigned) for e in es))
    return next(e.partition for e in events if isinstance(e, Assigned))


def read(source: Source, count: int) -> list[tuple[int, bytes | None]]:
    """(offset, value) of at least `count` messages."""
    return messages(until(source, lambda es: len(messages(es)) >= count))


def messages(events: list[Event]) -> list[tuple[int, bytes | None]]:
    batches = [e for e in events if isinstance(e, RawBatch)]
    return [(int(b.offsets[i]), b.value(i)) for b in batches for i in range(len(b))]


def test_messages_arrive_whole_and_in_order(make: Make) -> None:
    source = make(MESSAGES)
    source.start(assigned(source), None)
    assert read(source, 200) == list(enumerate(MESSAGES))


def test_nothing_arrives_before_start(make: Make) -> None:
    source = make(MESSAGES)
    assigned(source)
    assert messages([e for _ in range(5) for e in source.poll(0.1)]) == []


@pytest.mark.parametrize("offset", [1, 63, 119, 120, 121, 199])
def test_reading_resumes_at_any_offset(make: Make, offset: int) -> None:
    source = make(MESSAGES)
    source.start(assigned(source), offset)
    assert read(source, 200 - offset) == list(enumerate(MESSAGES))[offset:]


def test_batches_say_where_they_end_and_progress_agrees(make: Make) -> None:
    source = make(MESSAGES)
    partition = assigned(source)
    source.start(partition, 0)
    events = until(source, lambda es: len(messages(es)) == 200)
    position = 0
    for batch in (e for e in events if isinstance(e, RawBatch)):
        assert batch.offsets[0] >= position and len(batch) <= 64
        position = batch.next_offset
        assert position > batch.offsets[-1]
    assert position == 200
    assert source.progress()[partition].position == 200


def test_a_paused_partition_is_silent_and_loses_nothing(make: Make) -> None:
    source = make(MESSAGES)
    partition = assigned(source)
    source.start(partition, 0)
    first = read(source, 1)
    source.pause(partition)
    assert source.progress()[partition].paused
    assert messages([e for _ in range(4) for e in source.poll(0.1)]) == []
    source.resume(partition)
    assert first + read(source, 200 - len(first)) == list(enumerate(MESSAGES))


def test_a_second_start_goes_back(make: Make) -> None:
    source = make(MESSAGES)
    partition = assigned(source)
    source.start(partition, 150)
    read(source, 50)
    source.start(partition, 10)
    assert read(source, 190) == list(enumerate(MESSAGES))[10:]


def test_a_tombstone_keeps_its_place(make: Make, kind: str) -> None:
    source = make([b"a", None, b"c"])
    source.start(assigned(source), 0)
    expected = [(0, b"a"), (2, b"c")] if kind == "file" else [(0, b"a"), (1, None), (2, b"c")]
    assert read(source, len(expected)) == expected


def test_a_bounded_log_says_once_that_it_ends(make: Make, kind: str) -> None:
    source = make(MESSAGES)
    source.start(assigned(source), 0)
    events = until(source, lambda es: len(messages(es)) == 200)
    events += [e for _ in range(3) for e in source.poll(0.05)]
    ends = [e for e in events if isinstance(e, EndOfLog)]
    assert len(ends) == (0 if kind.startswith("kafka") else 1)


def test_commit_never_raises_and_close_is_bounded(make: Make) -> None:
    source = make(MESSAGES)
    partition = assigned(source)
    source.commit({partition: 5, Partition("nowhere", 3): 7})
    source.poll(0.1)
    begun = time.monotonic()
    source.close(timeout_s=5)
    source.close(timeout_s=5)
    assert time.monotonic() - begun < 12


def file_lines(path: Path, offset: int = 0, **settings: object) -> list[tuple[int, bytes | None]]:
    with closing(FileSource([path], SourceSettings(kind="file", **settings))) as source:
        source.start(assigned(source), offset)
        return messages(until(source, lambda es: any(isinstance(e, EndOfLog) for e in es)))


def test_file_crlf_empty_lines_and_a_last_line_without_newline(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\r\n\r\n\ntwo\nthree\r")
    assert file_lines(path) == [(0, b"one"), (3, b"two"), (4, b"three")]
    assert file_lines(path, 1) == [(3, b"two"), (4, b"three")]
    path.write_bytes(b"")
    assert file_lines(path) == []


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("\n\n\r\x0b\x01a"), max_size=60), st.integers(0, 9), st.integers(0, 20))
def test_lines_are_cut_as_splitting_would(text: str, line: int, first: int) -> None:
    _, _, rest = text.rpartition("\n")
    lines = text[: len(text) - len(rest)].split("\n")[:-1]
    wanted = [
        (line + i, found.removesuffix("\r"))
        for i, found in enumerate(lines)
        if found.removesuffix("\r") and line + i >= first
    ]
    data = np.frombuffer(text.encode() or b"a", np.uint8)
    count = cutting.count_lines(data)
    assert count == len(lines)
    offsets, starts, ends = (np.empty(count, np.int64) for _ in range(3))
    kept, tail = cutting.cut_lines(data, line, first, offsets, starts, ends)
    cuts = zip(offsets[:kept].tolist(), starts[:kept].tolist(), ends[:kept].tolist(), strict=True)
    assert [(n, text[a:b]) for n, a, b in cuts] == wanted
    assert tail == len(text) - len(rest)


@pytest.mark.parametrize("size", [1_000, 9_000_000])
def test_file_a_line_that_is_too_large_is_cut_and_the_next_one_is_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\n" + b"x" * size + b"\nb\n" + b"y" * size)
    found = file_lines(path, max_record_bytes=256)
    assert [offset for offset, _ in found] == [0, 1, 2, 3]
    assert found[0][1] == b"a" and found[2][1] == b"b"
    assert all(len(found[i][1] or b"") > 256 for i in (1, 3))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_file_packed_and_damaged(tmp_path: Path, suffix: str) -> None:
    import zstandard

    path = tmp_path / f"log{suffix}"
    plain = b"\n".join(MESSAGES)
    packed = gzip.compress(plain) if suffix == ".gz" else zstandard.compress(plain)
    path.write_bytes(packed)
    assert file_lines(path) == list(enumerate(MESSAGES))
    path.write_bytes(b"no archive at all, but long enough to be read as one")
    with closing(FileSource([path], SourceSettings(kind="file"))) as source:
        source.start(assigned(source), 0)
        events = until(source, lambda es: any(isinstance(e, EndOfLog) for e in es))
    assert [e.reason for e in events if isinstance(e, Undecodable)] == ["corrupt_batch"]


def test_file_that_is_missing_or_became_shorter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        FileSource([tmp_path / "missing"], SourceSettings(kind="file"))
    path = tmp_path / "a"
    path.write_bytes(b"one\n")
    with pytest.raises(SourceError, match="fewer than"):
        file_lines(path, 5)


def test_memory_an_offset_before_the_first_is_a_gap() -> None:
    partition = Partition("memory", 0)
    source = MemorySource([pack(partition, [10, 12], [b"a", b"b"])])
    source.start(assigned(source), 4)
    events = until(source, lambda es: len(messages(es)) == 2)
    assert Gap(partition, 4, 10) in events
