"""What people type wrong, and what is not there: every refusal says what would do, with its exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.cli import exit_code, first_line, hint
from tests import services
from tests.receivers import hook
from tests.test_cli import SECRET, call, sqlite_url

__all__ = ["call", "sqlite_url"]  # fixtures
Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(call: Call, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The command in this process, which must fail: its exit code, and all that it says."""

    def refused(*arguments: str) -> tuple[int, str]:
        try:
            code, out, err = call(*arguments)
        except Exception as error:
            refusal = exit_code(error)
            if refusal is None:
                raise
            capsys.readouterr()
            return refusal, f"{first_line(error)}{hint(error)}"
        assert code != 0, out
        return code, out + err

    return refused


REFUSED: list[tuple[list[str], int, str]] = [
    (["incidents", "show", "99"], 1, "`inferwatch incidents list` shows them"),
    (["incidents", "label", "1", " "], 2, "must say something"),
    (["incidents", "list", "--status", "shut"], 2, "use open, acknowledged or resolved"),
    (["silences", "add", "model=x", "--for", "0h"], 2, "longer than nothing"),
    (["silences", "add", "model=x", "--for", "long"], 2, "no duration"),
    (["silences", "remove", "none"], 1, "`inferwatch silences list` shows them"),
    (["deliveries", "list", "--status", "lost"], 2, "pending, claimed, delivered or dead"),
    (["deliveries", "retry", "none"], 1, "deliveries list --status dead"),
    (["deployments", "--verdict", "bad"], 2, "worse, different, better, alike or unclear"),
    (["models", "promote", "none"], 1, "`inferwatch models list` shows them"),
    (["models", "refuse", "none"], 1, "`inferwatch models list` shows them"),
    (["tokens", "revoke", "none"], 1, "`inferwatch tokens list` shows them"),
    (["evaluate", "what-if", "4", "--series", "none"], 1, "`inferwatch series` shows them"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), REFUSED, ids=[" ".join(e[0]) for e in REFUSED])
def test_a_refusal_says_what_would_do(
    refused: Refused, sqlite_url: str, arguments: list[str], code: int, said: str
) -> None:
    found, text = refused(*arguments, "--database", sqlite_url)
    assert (found, said in " ".join(text.replace("│", "").split())) == (code, True), text


def test_a_database_that_is_away_is_named_with_what_to_do(refused: Refused, tmp_path: Path) -> None:
    port = services.free_ports(1)[0]
    away = ("--database", f"postgresql://localhost:{port}/x")
    assert refused("series", *away)[1].endswith("`inferwatch doctor` tries the database")
    code, text = refused("db", "upgrade", "--database", f"sqlite:///{tmp_path}/none/x.db")
    assert code == 1 and f"{tmp_path}/none/x.db: unable to open" in text
    code, text = refused("train", "--database", f"sqlite:///{tmp_path}/x.db")
    assert code == 1 and "no database at" in text and list(tmp_path.iterdir()) == []


def test_an_address_that_cannot_be_listened_at_is_named(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, text = refused("webhook", "listen", "--port", port)
    assert code == 1 and f"127.0.0.1:{port}" in text and "choose another" in text


WRONG: list[tuple[str, str]] = [
    ('[sorce]\nkind = "file"\nsecret = "hunter2"', "sorce = '***': no such section; did you mean source?"),
    ('[source]\nknd = "file"\n[http]\nprt = 1', "did you mean kind?; also wrong: http.prt"),
    ("[nothing]\nx = 1", "no such section; there are source, record,"),
    ('kind = "file"', "stands outside a section; write it below [source]"),
    ('[source]\ntopics = "logs"', 'must be a list: ["..."]'),
    ("[source]\nsasl_password = 'hunter2'", "did you mean sasl_password_env?"),
    ('[channels]\noncall = "x"', "must be a section: [channels.oncall]"),
    ('[channels.oncall]\ntyp = "slack"\nurl = "http://x"', "channels.oncall.typ = 'slack': no such option"),
    ('[routes]\nchannels = ["x"]', "must be a list: [[routes]]"),
    ('[[routes]]\nchanels = ["x"]', "did you mean channels?"),
    ('source = "x"', "must be a section: [source]"),
    ("[http]\nport = 99999", "must be less than or equal to 65535"),
    ('[record]\nseries_by = ["user"]', "use model, model_version, endpoint"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text.replace("\n", " ") for text, _ in WRONG])
def test_a_wrong_option_is_named_with_what_would_be_right(
    refused: Refused, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    code, shown = refused("config", "check", "--config", str(file))
    assert code == 78 and said in shown and "hunter2" not in shown


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("INFERWATCH_WINDOW", "abc", "single options are set by INFERWATCH_WINDOW__OPTION"),
        ("INFERWATCH_WINDW__LENGTH_S", "3", "did you mean window?"),
        ("INFERWATCH_WINDOW__LENGHT_S", "3", "did you mean length_s?"),
        ("INFERWATCH_WINDOW__LENGTH_S", "x", "must be a valid integer"),
    ],
)
def test_a_wrong_variable_is_named_too(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    code, shown = refused("config", "check")
    assert code == 78 and said in shown


def test_a_channel_is_tried_though_another_one_is_wrong(call: Call, tmp_path: Path) -> None:
    with hook(200) as server:
        file = tmp_path / "c.toml"
        file.write_text(
            f'[source]\nkind = "file"\npaths = ["{tmp_path}"]\n'
            f'[channels.a]\nurl = "{server.url}"\nsecret = "{SECRET}"\nallow_private = true\n'
            '[channels.b]\ntype = "pagerduty"\n'
        )
        assert call("notify", "test", "a", "--config", str(file))[0] == 0
        database = ("--database", f"sqlite:///{tmp_path / 'x.db'}")
        code, out, _ = call("doctor", "--config", str(file), *database, "--json")
    failed = [row["check"] for row in json.loads(out) if not row["ok"]]
    assert (code, failed) == (1, [f"source.paths {tmp_path}", "channels.b.secret"])
