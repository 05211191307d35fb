"""Writes docs/configuration.md from the settings. `python docs/generate_configuration.py`"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from monitor.config import ChannelSettings, RouteSettings
from monitor.initialise import sections, toml_value

TARGET = Path(__file__).with_name("configuration.md")
UNITS = {
    "_s": "seconds",
    "_h": "hours",
    "_days": "days",
    "_bytes": "bytes",
    "_per_week": "per series and week",
}
HEADER = """\
# Configuration

Generated from `monitor/config.py` by `python docs/generate_configuration.py`: edit the settings, not
this page.

`inferwatch init` writes a commented `inferwatch.toml`. Give it with `--config FILE` or in
`INFERWATCH_CONFIG`; without one every option has the default below. `INFERWATCH_SECTION__KEY` in the
environment (for example `INFERWATCH_WINDOW__LENGTH_S=30`) overrides the file, `--database URL` overrides
both. An unknown key or a value out of range ends a command with exit code 78 and a line that names the key.
"""


def type_name(annotation: Any) -> str:
    """A type as a reader of TOML understands it."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return type_name(next(a for a in get_args(annotation) if a is not type(None)))
    if origin is list:
        return f"list of {type_name(get_args(annotation)[0])}"
    names = {"str": "text", "SecretStr": "text", "Path": "path", "int": "whole number", "float": "number"}
    return names.get(annotation.__name__, str(annotation.__name__).replace("bool", "true/false"))


def limits(field: FieldInfo) -> str:
    """The range a value must lie in, in words; empty without one."""
    words = {
        "ge": "at least",
        "gt": "more than",
        "le": "at most",
        "lt": "less than",
        "min_length": "length at least",
    }
    found = [
        f"{text} {getattr(rule, name):,}"
        for rule in field.metadata
        for name, text in words.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join(found)


def unit(key: str) -> str:
    return next((name for suffix, name in UNITS.items() if key.endswith(suffix)), "")


def row(key: str, field: FieldInfo) -> str:
    value = None if field.is_required() else toml_value(field.get_default(call_default_factory=True))
    default = "required" if field.is_required() else f"`{value}`" if value is not None else "not set"
    kind = type_name(field.annotation)
    parts = [kind, limits(field)]
    return (
        f"| `{key}` | {', '.join(p for p in parts if p)} | {default} | {unit(key)} | {field.description} |\n"
    )


def table(section: type[BaseModel]) -> str:
    head = "| option | type | default | unit | |\n|---|---|---|---|---|\n"
    return head + "".join(row(key, field) for key, field in section.model_fields.items())


def render() -> str:
    """The whole page."""
    parts = [HEADER]
    for name, section in sections():
        parts.append(f"\n## `[{name}]`\n\n{(section.__doc__ or '').strip()}\n\n{table(section)}")
    about = (ChannelSettings.__doc__ or "").strip()
    parts.append(f"\n## `[channels.NAME]`\n\n{about} NAME is yours to choose.\n\n{table(ChannelSettings)}")
    about = (RouteSettings.__doc__ or "").strip()
    parts.append(f"\n## `[[routes]]`\n\n{about} See [channels.md](channels.md).\n\n{table(RouteSettings)}")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
