"""A commented inferwatch.toml, written from the settings themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from monitor.config import ChannelSettings, RouteSettings, Settings
from monitor.errors import InferwatchError

HEADER = """\
# Inferwatch configuration. Every key below stands at its default: remove the # in front of one to change it.
# An environment variable INFERWATCH_SECTION__KEY overrides this file.
# `inferwatch config check --config FILE` checks it.
"""


def toml_value(value: Any) -> str | None:
    """A default as TOML; None for a value TOML has no word for."""
    if value is None:
        return None
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) or '""' for item in value) + "]"
    return json.dumps(value)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """The settings' sections by name, channels left out."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def default_config() -> str:
    """The whole file as text."""
    parts = [HEADER]
    for name, section in sections():
        parts.append(f"\n# {(section.__doc__ or '').strip()}\n[{name}]\n")
        parts += [_entry(key, field) for key, field in section.model_fields.items()]
    parts.append(
        f"\n# {(ChannelSettings.__doc__ or '').strip()} Give each a name of yours.\n# [channels.oncall]\n"
    )
    parts += [_entry(key, field) for key, field in ChannelSettings.model_fields.items()]
    parts.append(f"\n# {(RouteSettings.__doc__ or '').strip()} Repeat the section for more.\n# [[routes]]\n")
    parts += [_entry(key, field) for key, field in RouteSettings.model_fields.items()]
    return "".join(parts)


def _entry(key: str, field: FieldInfo) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    shown = toml_value(default) or toml_value(_example(key, field))
    unset = "; not set by default" if default is None and not field.is_required() else ""
    return f"# {field.description}{unset}\n#{key} = {shown}\n"


def _example(key: str, field: FieldInfo) -> str | list[str]:
    """Something that could stand where there is no default."""
    if key == "channels":
        return ["oncall"]
    if key == "dashboard_url":
        return "https://inferwatch.example.org"
    if key == "url":
        return "https://example.org/hook"
    choices = [choice for option in get_args(field.annotation) for choice in get_args(option)]
    return str(choices[0]) if choices else "..."


def write_config(path: Path) -> None:
    """Write the commented file. Raises InferwatchError if `path` exists: it is never overwritten."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(default_config())
    except FileExistsError:
        raise InferwatchError(
            f"{path} exists and is left as it is; give another name with --output"
        ) from None
    except OSError as error:
        raise InferwatchError(f"{path} cannot be written: {error.strerror}") from None
