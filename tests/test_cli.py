"""Commands as a person or a script meets them: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from monitor.cli import COMMANDS, build_app
from monitor.commands.common import DEFAULT_URL, database_url
from monitor.config import load
from monitor.config_channels import ChannelType
from monitor.doctor import redact_url
from monitor.listen import Received, Receiver
from tests import services
from tests.notices import ROUTING_KEY
from tests.receivers import hook
from tests.stored import CALM, populate

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def run(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, stdout, stderr. Errors pass through."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            build_app(arguments[0])(list(arguments), prog_name="inferwatch")
        except SystemExit as end:
            captured = capsys.readouterr()
            return int(end.code or 0), captured.out, captured.err
        raise AssertionError("a command ends with an exit code")

    return call


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('cli') / 'cli.db'}"
    populate(url)
    return url


READS: list[tuple[list[str], list[str], int]] = [
    (["incidents", "list"], ["incident_id", "status", "severity", "title", "series_count", "started_at"], 2),
    (["alerts"], ["alert_id", "incident_id", "series", "window_start", "score", "reason", "top_features"], 2),
    (["series"], ["series", "windows", "last_score"], 3),
    (["windows", CALM], ["window_start", "window_end", "request_count", "score", "revision"], 3),
    (["deliveries", "list"], ["delivery_id", "event", "channel", "status", "attempts", "last_error"], 3),
    (["silences", "list"], [], 0),
    (["models", "list"], [], 0),
]


READ_NAMES = [" ".join(read[0]) for read in READS]


@pytest.mark.parametrize(("command", "keys", "rows"), READS, ids=READ_NAMES)
def test_lists_are_json_arrays_with_the_names_of_the_views(
    call: Callable[..., tuple[int, str, str]], sqlite_url: str, command: list[str], keys: list[str], rows: int
) -> None:
    code, out, _ = call(*command, "--database", sqlite_url, "--json")
    found = json.loads(out)
    assert code == 0 and isinstance(found, list) and len(found) == rows
    for row in found:
        assert set(keys) <= set(row)
    code, out, err = call(*command, "--database", sqlite_url)
    assert code == 0
    assert (len(out.splitlines()), err == "") == ((rows + 1, True) if rows else (0, False))


def test_an_incident_is_shown_by_id_by_its_beginning_and_by_position(
    call: Callable[..., tuple[int, str, str]], sqlite_url: str
) -> None:
    wanted = json.loads(call("incidents", "list", "--database", sqlite_url, "--json")[1])[0]["incident_id"]
    for reference in (wanted, wanted[:8], "1"):
        code, out, _ = call("incidents", "show", reference, "--database", sqlite_url, "--json")
        found = json.loads(out)
        assert (code, found["incident_id"]) == (0, wanted)
        assert found["alerts"] and found["events"] and found["deliveries"]
    _, out, _ = call("incidents", "show", "1", "--database", sqlite_url)
    assert "latency_p99_ms\t900\t100" in out and "timeline" in out and "oncall" in out


def test_names_from_the_log_cannot_command_the_terminal(sqlite_url: str) -> None:
    for arguments in (["incidents", "list"], ["incidents", "show", "1"], ["series"], ["alerts", "--json"]):
        main, follower = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", *arguments, "--database", sqlite_url],
            stdout=follower,
            stderr=follower,
            env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
        )
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(main, 65_536)
            except OSError:  # the other end has closed
                break
            shown += part
        os.close(main)
        assert process.wait() == 0
        assert b"\x1b[2J" not in shown
        assert b"evil" in shown


def test_since_narrows_and_nonsense_is_a_usage_error(
    call: Callable[..., tuple[int, str, str]], sqlite_url: str
) -> None:
    assert json.loads(call("alerts", "--since", "24h", "--database", sqlite_url, "--json")[1]) == []
    since = ("--since", "1970-01-01T00:02:30Z")
    assert len(json.loads(call("alerts", *since, "--database", sqlite_url, "--json")[1])) == 1
    assert call("alerts", "--since", "yesterday", "--database", sqlite_url)[0] == 2


@pytest.mark.postgres
def test_postgresql_gives_the_same_answers(
    call: Callable[..., tuple[int, str, str]], sqlite_url: str, postgres_database: str
) -> None:
    populate(postgres_database)
    for command in (
        ["incidents", "list"],
        ["alerts"],
        ["series"],
        ["windows", CALM],
        ["incidents", "show", "1"],
    ):
        here = call(*command, "--database", sqlite_url, "--json")
        assert here == call(*command, "--database", postgres_database, "--json")


ERRORS: list[tuple[list[str], int, str]] = [
    (["incidents", "list", "--database", "sqlite:///nowhere.db"], 1, "no database"),
    (["incidents", "list", "--database", "mysql://x/y"], 78, "not supported"),
    (["incidents", "list", "--config", "missing.toml"], 78, "no such file"),
    (["replay", "x.jsonl", "--config", "bad.toml"], 78, "window.length_s"),
    (["config", "check", "--config", "unknown.toml"], 78, "colour"),
    (["replay"], 2, ""),
    (["replay", "x.jsonl", "--speed", "fast"], 2, "--speed"),
    (["nonsense"], 2, ""),
    (["incidents", "list", "--nonsense"], 2, ""),
    (["replay", "missing.jsonl", "--database", "sqlite:///new.db"], 1, "missing.jsonl"),
    (["inspect", "missing.jsonl"], 1, "missing.jsonl"),
    (["notify", "test", "nobody"], 78, "no such channel"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), ERRORS, ids=[" ".join(e[0]) for e in ERRORS])
def test_errors_are_one_line_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "bad.toml").write_text("[window]\nlength_s = -1\n")
    (tmp_path / "unknown.toml").write_text("colour = 1\n")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    if code != 2:
        assert len(done.stderr.strip().splitlines()) == 1


def test_reading_leaves_no_file_behind(tmp_path: Path) -> None:
    run("incidents", "list", cwd=tmp_path)
    run("doctor", cwd=tmp_path, env={"INFERWATCH_SOURCE__KIND": "stdin"})
    assert list(tmp_path.iterdir()) == []


def test_every_command_takes_config_and_database_and_has_help() -> None:
    from typer.main import get_command

    def walk(command: Any, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")
        if not hasattr(command, "commands"):
            options = {option for parameter in command.params for option in parameter.opts}
            assert {"--config", "--database"} <= options, path
            assert command.help, path

    walk(get_command(build_app()), "inferwatch")
    assert run("--version").stdout.startswith("inferwatch ")
    shown = run("--help").stdout
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("flag", [None, "sqlite:///flag.db"])
@pytest.mark.parametrize("variable", [None, "sqlite:///variable.db"])
@pytest.mark.parametrize("file", [None, "", '[database]\nurl = "sqlite:///file.db"\n'])
def test_the_short_way_to_the_database_agrees_with_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str | None, variable: str | None, file: str | None
) -> None:
    config = None
    if file is not None:
        config = tmp_path / "c.toml"
        config.write_text(file)
    if variable is not None:
        monkeypatch.setenv("INFERWATCH_DATABASE__URL", variable)
    assert database_url(config, flag) == load(config, database_url=flag).database.url
    assert load().database.url == (variable or DEFAULT_URL)


def test_init_writes_a_file_that_passes_and_is_never_overwritten(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "inferwatch.toml"
    assert call("init", "--output", str(file))[0] == 0
    assert call("config", "check", "--config", str(file))[0] == 0
    file.write_text("# mine\n")
    done = run("init", "--output", str(file))
    assert (done.returncode, file.read_text()) == (1, "# mine\n")


def test_secrets_are_not_shown(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[database]\nurl = "postgresql://ada:hunter2@db/x"\n'
        f'[channels.a]\nurl = "https://hooks.example.org/T0/hunter2?key=hunter2"\nsecret = "{SECRET}"\n'
        '[channels.b]\ntype = "apprise"\nurl = "tgram://123456789:abcdefg_hunter2/12345"\n'
        '[[routes]]\nchannels = ["a"]\n'
    )
    for command in (["config", "show"], ["config", "show", "--json"], ["config", "check"]):
        code, out, err = call(*command, "--config", str(file))
        assert code == 0
        assert "hunter2" not in out + err and SECRET not in out + err
        assert "hooks.example.org" in out


def test_urls_lose_their_secrets() -> None:
    assert redact_url("postgresql://u:p@h:5/n?sslmode=require") == "postgresql://u:***@h:5/n?sslmode=require"
    assert redact_url("postgresql://h/n?password=p") == "postgresql://h/n?***"
    assert redact_url("https://u:p@h/x/y?z=1") == "https://***@h/***"
    assert redact_url("sqlite:////data/x.db") == "sqlite:////data/x.db"
    assert redact_url("http://[::1]:8/") == "http://[::1]:8/"


def test_config_check_names_a_missing_secret(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[channels.a]\nurl = "https://example.org/x"\nsecret_env = "NOT_SET_ANYWHERE"\n')
    code, out, _ = call("config", "check", "--config", str(file))
    assert code == 78 and "export NOT_SET_ANYWHERE" in out


def test_a_test_notification_arrives_signed(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    got: list[Received] = []
    with Receiver(secret=SECRET, on_event=got.append) as receiver:
        file = tmp_path / "c.toml"
        file.write_text(f'[channels.a]\nurl = "{receiver.url}"\nsecret = "{SECRET}"\nallow_private = true\n')
        assert call("notify", "test", "a", "--config", str(file))[0] == 0
        receiver.wait_until_quiet()
    assert [(r.verified, r.payload["type"]) for r in got] == [(True, "test")]
    done = run("notify", "test", "a", "--config", str(file))
    assert done.returncode == 1 and "not delivered" in done.stderr


@pytest.mark.parametrize("kind", get_args(ChannelType))
def test_a_test_notification_reaches_a_channel_of_every_type_and_doctor_finds_it(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, kind: str
) -> None:
    with hook(200) as server:
        url = server.url.replace("http://", "json://") if kind == "apprise" else server.url
        secret = {"pagerduty": ROUTING_KEY, "slack": "", "apprise": "", "alertmanager": ""}.get(kind, SECRET)
        file = tmp_path / "c.toml"
        file.write_text(
            '[source]\nkind = "stdin"\n'
            f'[channels.a]\ntype = "{kind}"\nurl = "{url}"\nallow_private = true\n'
            + (f'secret = "{secret}"\n' if secret else "")
        )
        code, out, _ = call("notify", "test", "a", "--config", str(file))
        assert code == 0 and out.startswith("a: delivered")
        assert b"A test message" in server.requests[0][1] or b"nothing is wrong" in server.requests[0][1]
        database = ("--database", f"sqlite:///{tmp_path / 'x.db'}")
        code, out, _ = call("doctor", "--config", str(file), *database, "--json")
        mine = [row for row in json.loads(out) if row["check"] == "channels.a"]
        assert code == 0 and mine and all(row["ok"] for row in mine), out
    file.write_text(file.read_text().replace("allow_private = true", ""))
    if kind != "apprise":  # what apprise connects to is known only when it does
        code, out, _ = call("doctor", "--config", str(file), *database, "--json")
        failed = [row for row in json.loads(out) if not row["ok"]]
        assert code == 1 and [row["check"] for row in failed] == ["channels.a"]
        assert "allow_private" in failed[0]["fix"]


@pytest.mark.kafka
def test_doctor_tries_broker_topic_database_and_receivers(
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    sqlite_url: str,
    kafka_bootstrap: str,
    kafka_topic: Callable[..., str],
) -> None:
    topic = kafka_topic(partitions=2)
    port = services.free_ports(1)[0]
    file = tmp_path / "c.toml"
    text = (
        f'[source]\nbootstrap_servers = "{kafka_bootstrap}"\ntopics = ["{topic}"]\n'
        f'[channels.inside]\nurl = "http://127.0.0.1:{port}/"\nsecret = "{SECRET}"\n'
    )
    file.write_text(text)
    code, out, _ = call("doctor", "--config", str(file), "--database", sqlite_url, "--json")
    checks = {row["check"]: row for row in json.loads(out) if row["check"] in ("database", "broker")}
    assert code == 1
    assert checks["database"]["ok"] and checks["broker"]["ok"] and f"{topic}: 2 partitions" in out
    failed = [row for row in json.loads(out) if not row["ok"]]
    assert [row["check"] for row in failed] == ["channels.inside"] and "allow_private" in failed[0]["fix"]
    file.write_text(text.replace(topic, "no-such-topic"))
    code, out, _ = call("doctor", "--config", str(file), "--database", sqlite_url)
    assert code == 1 and "no-such-topic does not exist" in out and "fix: create it" in out


def test_inspect_says_what_a_log_holds(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    record = {"timestamp": "2026-03-02T00:00:00Z", "model": "m", "latency": 5, "prompt": "secret words"}
    later = {**record, "timestamp": "2026-03-02T01:00:00Z", "endpoint": "e", "latency_ms": 7}
    log.write_text("\n".join([json.dumps(record), json.dumps(later), "{", "[]"]) + "\n")
    code, out, _ = call("inspect", str(log), "--json")
    report = json.loads(out)
    assert (code, report["messages"], report["records"], report["span_s"]) == (0, 4, 2, 3600.0)
    assert {row["reason"]: row["messages"] for row in report["rejected"]} == {
        "not_json": 1,
        "not_an_object": 1,
    }
    assert report["rejected"][0]["first_line"] in (3, 4)
    fields = {row["field"]: row["missing_share"] for row in report["fields"]}
    assert fields["model"] == 0 and fields["endpoint"] == 0.5
    unused = {row["field"]: row["meant_as"] for row in report["unused_fields"]}
    assert unused == {"latency": "latency_ms", "prompt": None}
    assert report["series_count"] == 2
    assert "secret words" not in out
    file = tmp_path / "c.toml"
    file.write_text(report["config"])
    assert load(file).source.kind == "file"
    assert call("inspect", str(log))[0] == 0


def test_simulate_writes_what_inspect_reads(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl.gz"
    code, out, _ = call("simulate", "--out", str(log), "--days", "0.02", "--services", "2", "--json")
    written = json.loads(out)
    report = json.loads(call("inspect", str(log), "--json")[1])
    assert code == 0
    assert (report["records"], report["rejected"]) == (written["records"], [])
    assert {row["series"]: row["records"] for row in report["series"]} == written["series"]
    assert call("simulate")[0] == 2
    assert call("simulate", "--list-faults")[0] == 0
