"""What TAB offers in a shell: the names that are there, and nothing else whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from monitor.cli import build_app
from monitor.commands import completion
from storage import queries
from storage.engine import connect
from storage.people import People
from tests.stored import CALM, HOSTILE, populate
from tests.test_cli import run


def offered(*words: str, cwd: Path | None = None) -> list[str]:
    """What is offered for the last of the words, which is not written to its end."""
    asked = {"COMP_WORDS": " ".join(("inferwatch", *words)), "COMP_CWORD": str(len(words))}
    done = run(env={"_INFERWATCH_COMPLETE": "complete_bash", **asked}, cwd=cwd)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = f"sqlite:///{tmp_path_factory.mktemp('completion') / 'c.db'}"
    populate(made)
    engine = connect(made)
    People(engine).silence({"model": "rank"}, starts_at_ms=0, ends_at_ms=1 << 45, by="ann", now_ms=0)
    engine.dispose()
    return made


def test_names_in_the_database_are_offered(url: str) -> None:
    engine = connect(url)
    incident = str(queries.incidents(engine)[0]["incident_id"])
    (silence,) = queries.silences(engine)
    dead = [row["delivery_id"] for row in queries.deliveries(engine, status="dead")]
    engine.dispose()
    at = ("--database", url)
    assert offered("incidents", "show", *at, incident[:4]) == [incident[:8]]
    assert offered("silences", "remove", *at, silence["silence_id"][:3]) == [silence["silence_id"]]
    assert set(offered("deliveries", "retry", *at, "")) == set(dead)
    assert set(offered("windows", *at, CALM[:3])) == {CALM}
    assert offered("windows", *at, "nothing") == []


def test_a_name_that_could_command_the_terminal_is_not_offered(url: str) -> None:
    engine = connect(url)
    assert HOSTILE in {row["series"] for row in queries.series(engine)}
    engine.dispose()
    names = offered("alerts", "--database", url, "--series", "")
    assert CALM in names and not [name for name in names if "\x1b" in name or "evil" in name]


def test_words_of_an_option_are_offered() -> None:
    assert offered("incidents", "list", "--status", "a") == ["acknowledged"]
    assert offered("incidents", "label", "1", "f") == ["false_positive"]


def test_channels_of_the_configuration_are_offered(tmp_path: Path) -> None:
    config = tmp_path / "inferwatch.toml"
    config.write_text('[channels.oncall]\nurl = "https://example.org/hook"\n')
    assert offered("notify", "test", "--config", str(config), "o") == ["oncall"]


def test_where_nothing_can_be_read_nothing_is_offered_and_nothing_is_said(tmp_path: Path) -> None:
    assert offered("incidents", "show", "", cwd=tmp_path) == []
    assert offered("notify", "test", "--config", "nowhere.toml", "", cwd=tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_fields_of_a_silence_and_what_they_hold_are_offered(url: str) -> None:
    context = typer.Context(typer.main.get_command(build_app("silences")))
    context.params["database"] = url

    def words(incomplete: str) -> list[str]:
        return [word for word, _ in completion.matchers(context, incomplete)]

    assert words("mod") == ["model=", "model_version="]
    assert words("model=r") == ["model=rank"] and words("nothing=") == []
    assert completion.among("a", "ab", "b")("a") == ["a", "ab"]
