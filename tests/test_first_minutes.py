"""What somebody meets in the first minutes: what is missing is said at once, and each step names the next."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from rich.console import Console

from monitor import logs
from monitor.listen import Received, show
from tests.test_cli import call, run

__all__ = ["call"]  # the fixture
Call = Callable[..., tuple[int, str, str]]


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "inferwatch.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("paths", "code", "said"),
    [
        ('["none.jsonl"]', 1, "none.jsonl: no such file, or it may not be read"),
        ('["."]', 1, ". is a folder; name the files in it"),
        ("[]", 78, 'no file is named; set source.paths = ["FILE"]'),
    ],
)
def test_run_without_its_log_says_so_before_anything_is_made(
    tmp_path: Path, paths: str, code: int, said: str
) -> None:
    file = written(tmp_path, f'[source]\nkind = "file"\npaths = {paths}\n')
    done = run("run", "--config", file, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["inferwatch.toml"], "no database was made"


def test_run_says_before_anything_is_made_that_its_address_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = written(tmp_path, f'[source]\nkind = "stdin"\n[http]\nport = {port}\n')
        done = run("run", "--config", file, cwd=tmp_path)
    assert done.returncode == 78 and "cannot be bound" in done.stderr
    assert not (tmp_path / "inferwatch.db").exists()


def test_a_replay_of_a_file_that_is_not_there_makes_no_database(tmp_path: Path) -> None:
    done = run("replay", "none.jsonl", "--database", f"sqlite:///{tmp_path / 'x.db'}", cwd=tmp_path)
    assert done.returncode == 1 and "none.jsonl: no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_each_step_names_the_next_one(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    steps = [("init",), ("config", "check"), ("doctor",)]
    file = written(tmp_path, '[source]\nkind = "file"\npaths = ["log.jsonl"]\n')
    for step, following in zip(steps, ("config check", "doctor", "run"), strict=True):
        own = ("--output", "other.toml") if step == ("init",) else ("--config", file)
        code, out, _ = call(*step, *own)
        assert code == 0
        assert out.splitlines()[-1] == f"next: inferwatch {following} --config {own[1]}"
    assert json.loads(call("doctor", "--config", file, "--json")[1])[0]["ok"]


def test_a_secret_that_is_missing_is_the_finding_and_its_export_the_fix(call: Call, tmp_path: Path) -> None:
    channel = '[channels.oncall]\nurl = "https://example.org/"\nsecret_env = "NO_SUCH_SECRET"\n'
    file = written(tmp_path, '[source]\nkind = "stdin"\n' + channel)
    code, out, _ = call("config", "check", "--config", file)
    assert code == 78 and "next:" not in out
    assert "FAIL  channels.oncall.secret_env: NO_SUCH_SECRET: the environment variable is not set" in out
    assert "      fix: export NO_SUCH_SECRET=..." in out


def test_the_receiver_says_what_arrived_before_it_shows_all_of_it() -> None:
    said = io.StringIO()
    data = {"severity": "critical", "title": "High [b]latency\x1b[2J", "summary": "p99 is 9 s"}
    payload = {"type": "incident.opened", "data": data}
    received = Received("id-\x1b]0;x", True, "verified", payload, {}, b"")
    show(Console(file=said, soft_wrap=True), received)
    first, second, third, *rest = said.getvalue().splitlines()
    assert first == r"signature verified  webhook-id id-\x1b]0;x"
    assert (second, third) == (r"incident.opened  critical  High [b]latency\x1b[2J", "p99 is 9 s")
    assert json.loads("\n".join(rest)) == payload
    show(Console(file=said, soft_wrap=True), Received("id-2", True, "verified", {"data": [1]}, {}, b""))
    assert "\x1b" not in said.getvalue()


def test_what_libraries_say_is_a_line_of_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.configure("info")
    logging.getLogger("kafka.net").warning("a broker says %s", "\x1b[2Jno")
    structlog.get_logger().info("started", source="kafka")
    theirs, ours = (json.loads(line) for line in said.getvalue().splitlines())
    assert (theirs["event"], theirs["level"], theirs["logger"]) == (
        "a broker says \x1b[2Jno",
        "warning",
        "kafka.net",
    )
    assert (ours["event"], ours["level"], set(ours)) == (
        "started",
        "info",
        {"event", "level", "source", "timestamp"},
    )
    assert "\x1b" not in said.getvalue() and theirs["timestamp"].endswith("Z")
    structlog.reset_defaults()
