"""Short commands without building a parser: their arguments are bound by what their signature declares.

Building typer's parser loads pydantic, which takes several times as long as reading a database and printing
what it holds. Only what is plain is bound here; whatever is not (an unknown option, help, a value that does
not fit) is left to typer, which says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

_NOT_BOUND = object()


def bind(function: Callable[..., None], arguments: Sequence[str]) -> dict[str, Any] | None:
    """Keyword arguments for a command whose parameters are `Annotated` for typer; None = ask typer.

    Options may stand anywhere, as `--name VALUE` or `--name=VALUE`; texts, paths, whole numbers within
    their bounds and flags are understood.
    """
    hints = get_type_hints(function, include_extras=True)
    options: dict[str, tuple[str, Any, OptionInfo]] = {}
    places: list[tuple[str, Any, Parameter]] = []
    bound: dict[str, Any] = {}
    for name, parameter in signature(function).parameters.items():
        kind, *extras = get_args(hints[name])
        info = next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)
        if isinstance(info, ArgumentInfo) and info.envvar is None:
            places.append((name, kind, parameter))
        elif isinstance(info, OptionInfo) and info.default_factory is None:
            words = (info.default, *(info.param_decls or ()))  # the first one lands in `default`
            options |= {word: (name, kind, info) for word in words if isinstance(word, str)}
            bound[name] = parameter.default
            given = os.environ.get(info.envvar) if isinstance(info.envvar, str) else None
            if given:
                bound[name] = _value(given, kind, info)
        else:
            return None
    texts = _options(arguments, options, bound)
    if texts is None or len(texts) != len(places):
        return None
    bound |= {name: _value(text, kind, None) for text, (name, kind, _) in zip(texts, places, strict=True)}
    return None if _NOT_BOUND in bound.values() else bound


def _options(
    arguments: Sequence[str], options: dict[str, tuple[str, Any, OptionInfo]], bound: dict[str, Any]
) -> list[str] | None:
    """Put the values of options into `bound`; returns what is no option, None for what is not plain."""
    rest: list[str] = []
    waiting = iter(arguments)
    for word in waiting:
        if not word.startswith("-"):
            rest.append(word)
            continue
        flag, equals, text = word.partition("=")
        if flag not in options:
            return None
        name, kind, info = options[flag]
        if kind is bool:
            if equals:
                return None
            bound[name] = True
            continue
        value = text if equals else next(waiting, None)
        if value is None or (not equals and value.startswith("-")):
            return None
        bound[name] = _value(value, kind, info)
    return rest


def _value(text: str, kind: Any, info: OptionInfo | None) -> Any:
    kinds = (
        [each for each in get_args(kind) if each is not NoneType] if isinstance(kind, UnionType) else [kind]
    )
    if kinds == [str]:
        return text
    if kinds == [Path]:
        return Path(text)
    if kinds == [int] and text.isascii() and text.isdigit() and len(text) < 10:
        number = int(text)
        low, high = (None, None) if info is None else (info.min, info.max)
        return number if (low is None or number >= low) and (high is None or number <= high) else _NOT_BOUND
    return _NOT_BOUND
