"""`inferwatch inspect` of logs as they come: what is wrong with them, and commands that mend them and do."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jq
import pytest

from monitor.clock import SystemClock
from monitor.config import load
from monitor.inspect import inspect
from monitor.lookalikes import Objects, conversion, meaning_of
from monitor.refusals import troubles
from tests.test_cli import call

__all__ = ["call"]  # the fixture
Call = Callable[..., tuple[int, str, str]]
BASE_S = 1_780_000_000
RECORDS = [
    {"timestamp": BASE_S + 2 * i, "model": "m", "endpoint": "/v1", "status": 200, "latency_ms": 100 + i % 7}
    for i in range(40)
]
LINES = "\n".join(map(json.dumps, RECORDS)) + "\n"


def report_of(path: Path) -> dict[str, Any]:
    return inspect([path], load(), SystemClock())


def csv_text() -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(RECORDS[0]))
    writer.writeheader()
    writer.writerows(RECORDS)
    return text.getvalue()


SHAPES: dict[str, tuple[bytes, str]] = {
    "array.json": (json.dumps(RECORDS).encode(), "one JSON array"),
    "array.json.gz": (gzip.compress(json.dumps(RECORDS, indent=1).encode()), "one JSON array"),
    "spread.json": ("\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(), "over several lines"),
    "a log.csv": (csv_text().encode(), "looks like CSV"),
    "utf16.jsonl": (LINES.encode("utf-16"), "is UTF-16"),
    "bom.jsonl": (b"\xef\xbb\xbf" + LINES.encode(), "byte order mark"),
    "packed.jsonl": (gzip.compress(LINES.encode()), "packed with gzip"),
    "plain.jsonl.gz": (LINES.encode(), "is not packed"),
}


def follow(fix: str) -> None:
    """Do what was said; jq itself is its library here, so that no machine needs the program."""
    words = shlex.split(fix)
    if "jq" in words:
        program, target = words[words.index("-c") + 1], words[-1]
        source = next(word for word in words if Path(word).is_file())
        content = Path(source).read_bytes()
        text = (gzip.decompress(content) if source.endswith(".gz") else content).decode()
        Path(target).write_text("\n".join(map(json.dumps, jq.compile(program).input_text(text).all())))
        return
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert subprocess.run(fix, shell=True, check=False, timeout=60, env=here).returncode == 0, fix


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_file_is_instead_is_said_with_a_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, what = SHAPES[name]
    Path(name).write_bytes(content)
    report = report_of(Path(name))
    (advice,) = (line for line in report["advice"] if what in line)
    fix = advice.partition(": ")[2]
    if fix.startswith("rename it to "):
        mended = Path(fix.removeprefix("rename it to "))
        Path(name).rename(mended)
    else:
        follow(fix)
        (mended,) = Path().glob("*.lines.jsonl")
    again = report_of(mended)
    assert (again["records"], again["rejected"]) == (len(RECORDS), [])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n\n \n", "is empty"),
        ("binary.bin", bytes(range(256)) * 100, "is binary"),
        ("text.log", b"2026-01-01 12:00:00 INFO done in 0.5s\n" * 9, "plain text"),
        ("table.parquet", b"PAR1" + bytes(99), "Parquet"),
        ("long.jsonl", json.dumps({**RECORDS[0], "prompt": "x" * 300_000}).encode(), "max_record_bytes"),
    ],
)
def test_a_file_without_a_record_says_why_and_fails(
    call: Call, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code, out, err = call("inspect", str(tmp_path / name))
    assert code == 1 and said in out and err == "no message of this log is a record\n"
    assert "A configuration" not in out and "nowhere present" not in out


def test_a_log_that_was_cut_short_is_read_up_to_the_damage(tmp_path: Path) -> None:
    log = tmp_path / "cut.jsonl.gz"
    log.write_bytes(gzip.compress("".join(LINES for _ in range(200)).encode())[:-500])
    report = report_of(log)
    assert report["records"] > 0 and [row["reason"] for row in report["rejected"]] == ["corrupt_batch"]
    assert any("ends early or is damaged" in line for line in report["advice"])


def test_a_folder_is_no_log(tmp_path: Path, call: Call) -> None:
    from monitor.errors import SourceError

    for command in ("inspect", "replay"):
        with pytest.raises(SourceError, match=r"is a folder; name the files in it"):
            call(command, str(tmp_path), "--database", f"sqlite:///{tmp_path / 'x.db'}")
    assert list(tmp_path.iterdir()) == []


OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": BASE_S,
    "model": "gpt-x",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "secret"}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
}
LITELLM = {
    "id": "chatcmpl-1",
    "call_type": "acompletion",
    "response_cost": 0.002,
    "status": "failure",
    "prompt_tokens": 10,
    "completion_tokens": 0,
    "startTime": BASE_S + 0.25,
    "endTime": BASE_S + 1.0,
    "model": "gpt-x",
    "model_id": "0af3",
    "metadata": {"user_api_key_team_id": "t1"},
}
SERVER = {
    "asctime": "2026-05-28 20:26:40,500",
    "levelname": "INFO",
    "request_id": "r1",
    "model": "open-70b",
    "prompt_tokens": 3,
    "generation_tokens": 8,
    "e2e_latency": 1.5,
    "time_to_first_token": 0.125,
}
NATIVE = {"timestamp": BASE_S, "model": "m", "latency_ms": 5}
CONVERSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an answer of a chat API": (
        OPENAI,
        {
            "timestamp": BASE_S,
            "model": "gpt-x",
            "request_id": "chatcmpl-1",
            "finish_reason": "stop",
            "input_tokens": 10,
            "output_tokens": 20,
        },
    ),
    "request and answer, each nested": (
        {"timestamp": BASE_S, "request": {"model": "gpt-x"}, "response": OPENAI, "latency": 0.5},
        {
            "timestamp": BASE_S,
            "model": "gpt-x",
            "request_id": "chatcmpl-1",
            "finish_reason": "stop",
            "latency_ms": 500,
            "input_tokens": 10,
            "output_tokens": 20,
        },
    ),
    "a gateway's log": (
        LITELLM,
        {
            "timestamp": BASE_S + 0.25,
            "model": "gpt-x",
            "request_id": "chatcmpl-1",
            "endpoint": "acompletion",
            "status": "error",
            "latency_ms": 750,
            "input_tokens": 10,
            "output_tokens": 0,
            "cost_usd": 0.002,
        },
    ),
    "a server's log without a time zone": (
        SERVER,
        {
            "timestamp": "2026-05-28T20:26:40.500Z",
            "model": "open-70b",
            "request_id": "r1",
            "latency_ms": 1500,
            "ttft_ms": 125,
            "input_tokens": 3,
            "output_tokens": 8,
        },
    ),
    "wrapped by a log shipper": ({"log": json.dumps(NATIVE) + "\n", "stream": "stdout"}, NATIVE),
    "wrapped, with other names": (
        {"log": json.dumps({"ts": BASE_S, "model": "m"}), "stream": "stdout"},
        {"timestamp": BASE_S, "model": "m"},
    ),
    "seconds as text": ({**NATIVE, "timestamp": str(BASE_S)}, NATIVE),
    "units in the text, and a percentage": (
        {**NATIVE, "latency_ms": "0.25s", "ttft_ms": "12 ms", "gpu_util": 87, "metrics": {"hit": 0.4}},
        {**NATIVE, "latency_ms": 250, "ttft_ms": 12, "gpu_util": 0.87, "metrics": {"hit": 0.4}},
    ),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_records_are_made_of_other_logs(tmp_path: Path, name: str) -> None:
    log, record = CONVERSIONS[name]
    found = conversion_of(log)
    made = jq.compile(found).input_value(log).first()
    assert {key: value for key, value in made.items() if value is not None} == record
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(made) for _ in range(3)))
    assert report_of(path)["records"] == 3
    path.write_text("\n".join(json.dumps(log) for _ in range(3)))
    command = report_of(path)["convert"]["command"]
    assert shlex.split(command)[-3] == found, command


def conversion_of(*logs: dict[str, Any]) -> str:
    objects = Objects()
    for log in logs:
        objects.add(log)
    found = conversion(objects)
    assert found is not None
    return found.program


def test_what_is_absent_in_some_objects_stays_absent() -> None:
    program = conversion_of(SERVER, {**SERVER, "e2e_latency": None}, SERVER)
    made = jq.compile(program).input_value({**SERVER, "e2e_latency": None}).first()
    assert made["latency_ms"] is None and made["ttft_ms"] == 125
    assert "secret" not in conversion_of(OPENAI)
    named = {"ts": BASE_S, "model": "m", "metrics": {"hit": 0.4, "latency": 3}}
    assert jq.compile(conversion_of(named)).input_value(named).first() == {
        "timestamp": BASE_S,
        "model": "m",
        "metrics": {"hit": 0.4, "latency": 3},
    }


@pytest.mark.parametrize("log", [NATIVE, {"message": "hello"}, {"ts": BASE_S}, {"model": "m"}, {}])
def test_where_there_is_no_need_or_no_way_nothing_is_proposed(log: dict[str, Any]) -> None:
    objects = Objects()
    objects.add(log)
    assert conversion(objects) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timestamp": None}, "`timestamp` is missing"),
        ({"timestamp": "2026-05-28 20:26:40"}, "`timestamp` must be RFC 3339 with an offset"),
        ({"timestamp": 12}, "`timestamp` lies before 2000"),
        ({"latency_ms": "103ms"}, "`latency_ms` must be a number"),
        ({"latency_ms": -1}, "`latency_ms` must be a number, 0 or more"),
        ({"gpu_util": 87}, "`gpu_util` must be a number between 0 and 1"),
        ({"status": "success"}, "`status` must be an HTTP code"),
        ({"model": "a\0b"}, "`model` must be a text"),
        ({"metrics": [1]}, "`metrics` must be names with numbers"),
        ({"label": {}}, "`label` must be a text, a number, true or false"),
    ],
)
def test_a_rejected_message_says_which_field_is_wrong(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    wrong = {**NATIVE, **change}
    (found,) = troubles(wrong)
    assert found.startswith(said)
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in (NATIVE, NATIVE, wrong)))
    (row,) = report_of(path)["rejected"]
    assert (row["first_line"], row["messages"], row["why"]) == (3, 1, found)


def test_a_time_ahead_of_the_clock_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    ahead_s = int(datetime(2090, 1, 1, tzinfo=UTC).timestamp())
    path.write_text(json.dumps({**NATIVE, "timestamp": ahead_s}))
    (row,) = report_of(path)["rejected"]
    assert row["why"] == "`timestamp` lies ahead of this machine's clock"
    assert troubles(NATIVE) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("promptTokens", "input_tokens"),
        ("latency_ms", "latency_ms"),
        ("latencyMs", "latency_ms"),
        ("x", None),
    ],
)
def test_names_are_known_however_they_are_written(name: str, meant: str | None) -> None:
    assert meaning_of(name) == meant
