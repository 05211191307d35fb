"""What is wrong with a configuration, in words that name the option and the way to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.errors import ConfigError

HIDDEN = "***"
SECRET_WORDS = ("secret", "url", "password", "token", "key")
PREFIX = "INFERWATCH_"


def config_error(settings: type[BaseModel], error: ValidationError) -> ConfigError:
    """The first wrong option with its fix; the names of the others stand behind it."""
    first, *others = sorted(error.errors(), key=lambda each: each["type"] == "missing")
    fix = _fix(settings, first)
    if others:
        fix += f"; also wrong: {', '.join(_key(other) for other in others)}"
    return ConfigError(_key(first), _shown(first), fix)


def check_variables(settings: type[BaseModel], environment: Mapping[str, str]) -> None:
    """Raises ConfigError for a variable that names an option of a section that does not exist."""
    for name in sorted(environment):
        section, double, _ = name.removeprefix(PREFIX).partition("__")
        if name.startswith(PREFIX) and double and section.lower() not in settings.model_fields:
            fix = f"no such section{_meant(section.lower(), settings.model_fields)}"
            raise ConfigError(name, HIDDEN, fix)


def _key(error: ErrorDetails) -> str:
    return ".".join(str(part) for part in error["loc"]) or "(file)"


def _shown(error: ErrorDetails) -> object:
    """The wrong value, unless it may hold a secret."""
    names = [str(part).lower() for part in error["loc"]]
    value = error.get("input")
    secret = any(word in name for name in names for word in SECRET_WORDS)
    return HIDDEN if secret or (isinstance(value, dict | list) and _holds_dict(value)) else value


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or any(isinstance(each, dict) for each in value)


def _fix(settings: type[BaseModel], error: ErrorDetails) -> str:
    loc, kind = error["loc"], error["type"]
    name = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        homes = _sections_with(settings, name) if len(loc) == 1 else []
        if homes:
            return f"stands outside a section; write it below [{homes[0]}]"
        what = "section" if len(loc) == 1 and isinstance(error.get("input"), dict) else "option"
        return f"no such {what}{_meant(name, _names_at(settings, loc[:-1]))}"
    if kind in ("model_type", "dict_type"):
        return f"must be a section: [{_key(error)}], and its options below"
    if kind == "list_type":
        is_section = isinstance(error.get("input"), dict)
        return f"must be a list: [[{name}]]" if is_section else 'must be a list: ["..."]'
    if kind == "missing":
        return "is missing"
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _meant(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _sections_with(settings: type[BaseModel], name: str) -> list[str]:
    sections = {key: field.annotation for key, field in settings.model_fields.items()}
    return [
        key
        for key, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel) and name in section.model_fields
    ]


def _names_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The options of the section at `loc`, in which names of channels and numbers of routes stand too."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # the name of a channel, or the number of a route
        choices = [field.annotation, *get_args(field.annotation)]
        model = next(
            (each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), model
        )
    return list(model.model_fields)
