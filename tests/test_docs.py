"""The documents say what the software does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from docs.generate_configuration import TARGET, UNITS, render, unit
from monitor.cli import build_app
from monitor.config import ChannelSettings, load
from monitor.initialise import default_config, sections
from monitor.records import NUMBER_FIELDS, REJECT_REASONS, TEXT_FIELDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ALL_SECTIONS: list[tuple[str, type[BaseModel]]] = [*sections(), ("channels.NAME", ChannelSettings)]


def test_the_configuration_page_is_what_the_settings_generate() -> None:
    assert TARGET.read_text() == render(), "run `python docs/generate_configuration.py`"


@pytest.mark.parametrize(("name", "section"), ALL_SECTIONS)
def test_every_option_has_a_type_a_line_of_help_and_a_unit(name: str, section: type[BaseModel]) -> None:
    for key, field in section.model_fields.items():
        assert field.annotation is not None, key
        assert field.description, f"{name}.{key} has no help"
        if field.annotation is float:
            assert unit(key), f"{name}.{key} has no unit in its name; known: {', '.join(UNITS)}"


def test_the_commented_file_is_valid_as_written_and_with_every_comment_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "inferwatch.toml"
    file.write_text(default_config())
    assert load(file) == load()
    bare = re.sub(r"^#(?=\w)|^# (?=\[)", "", default_config(), flags=re.MULTILINE)
    tomllib.loads(bare)
    file.write_text(bare)
    assert load(file).channels["oncall"].url == "https://example.org/hook"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def command_names(command: Any, path: str = "") -> set[str]:
    """`incidents list` and the like, every one."""
    if not hasattr(command, "commands"):
        return {path}
    return set().union(*(command_names(c, f"{path} {name}".strip()) for name, c in command.commands.items()))


def test_every_command_is_described_and_every_described_one_exists() -> None:
    described = set(
        re.findall(r"^\| `([a-z -]+?)(?: [A-Z\[].*)?` \|", (ROOT / "docs/commands.md").read_text(), re.M)
    )
    assert described == command_names(get_command(build_app()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_examples_exist(page: Path) -> None:
    known = command_names(get_command(build_app()))
    for line in re.findall(r"^inferwatch ([a-z][a-z -]*[a-z])", page.read_text(), re.MULTILINE):
        words = line.split()
        assert words[0] in known or " ".join(words[:2]) in known, f"{page.name}: inferwatch {line}"


def test_the_records_page_names_every_field_and_every_reject_reason() -> None:
    text = (ROOT / "docs/records.md").read_text()
    for name in (*TEXT_FIELDS, *NUMBER_FIELDS, *REJECT_REASONS):
        assert f"`{name}`" in text, name
