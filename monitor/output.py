"""What commands print: tables on a terminal, tab-separated lines in a pipe, JSON on request."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from monitor.clock import rfc3339

Row = Mapping[str, Any]

_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])")
_STYLES = {"critical": "bold red", "major": "yellow", "warning": "cyan", "resolved": "green"}
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def clean(text: str) -> str:
    """`text` with every control and invisible formatting character spelled out (ESC -> `\\x1b`).

    Model names come from the log: printed as they are, they could move the cursor or hide text.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(c) if unicodedata.category(c) in _UNSAFE_CATEGORIES else c for c in text)


def _spelled(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_time(text: str, now_ms: int) -> int:
    """`24h`, `7d`, `90m` (that long ago) or an RFC 3339 time -> ms since the epoch.

    A time without an offset is UTC. Raises ValueError with the accepted forms.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now_ms - int(float(ago[1]) * _UNIT_MS[ago[2]])
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no time: use 24h, 7d, 90m or 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def parse_duration_ms(text: str) -> int:
    """`90m`, `2h`, `7d` -> ms. Raises ValueError for anything else."""
    length = _AGO.fullmatch(text.strip())
    if length is None:
        raise ValueError(f"{text!r} is no duration: use 30m, 2h or 7d")
    return int(float(length[1]) * _UNIT_MS[length[2]])


def plain(value: Any) -> Any:
    """The JSON form of a value: non-finite numbers become null, times RFC 3339 UTC."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return rfc3339(round(aware.timestamp() * 1000))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """One JSON document, ASCII only, so that no character of a log reaches the terminal as it is."""
    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False, default=str) + "\n")


def print_json_line(value: Any) -> None:
    """One JSON object on one line."""
    sys.stdout.write(json.dumps(plain(value), allow_nan=False, default=str) + "\n")


def cell(value: Any) -> str:
    """A value as it stands in a table: short numbers, `-` for nothing."""
    value = plain(value)
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value) or "-"
    if isinstance(value, dict):
        return clean(json.dumps(value, ensure_ascii=False))
    return clean(str(value))


def number(value: float) -> str:
    """Four significant digits, no exponent between 0.001 and 10 million."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    if value == int(value) and size < 1e7:
        return f"{int(value)}"
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(size))) if size else 0
    return f"{value:.{decimals}f}"


def print_rows(rows: Iterable[Row], columns: Sequence[str], *, empty: str, as_json: bool = False) -> None:
    """Rows as JSON, as a table on a terminal, or as tab-separated lines with a header.

    `empty` is said on stderr when there is nothing, so that a pipe stays clean.
    """
    rows = list(rows)
    if as_json:
        print_json(rows)
        return
    if not rows:
        sys.stderr.write(empty + "\n")
        return
    if sys.stdout.isatty():
        _print_table(rows, columns)
        return
    lines = ["\t".join(columns)]
    lines += ["\t".join(cell(row.get(column)) for column in columns) for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")


def _print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(text, style=_STYLES.get(text, "")) for text in (cell(row.get(c)) for c in columns))
        )
    Console().print(table)


def severity_style(word: str) -> str:
    """How rich shows a severity or status; "" for other words."""
    return _STYLES.get(word, "")


def age(length_ms: int) -> str:
    """`90_000` -> "1m", at most two units: "3d 4h"; "0m" for less than a minute and for nothing."""
    minutes = max(length_ms, 0) // 60_000
    days, hours, minutes = minutes // 1_440, minutes // 60 % 24, minutes % 60
    parts = [f"{days}d" * (days > 0), f"{hours}h" * (hours > 0), f"{minutes}m" * (minutes > 0)]
    return " ".join([part for part in parts if part][:2]) or "0m"


def print_fields(row: Row, keys: Sequence[str]) -> None:
    """One thing, a line per field."""
    width = max(len(key) for key in keys)
    sys.stdout.write("".join(f"{key.replace('_', ' '):<{width}}  {cell(row.get(key))}\n" for key in keys))


def say(text: str = "") -> None:
    """A line on stdout; control characters are spelled out."""
    sys.stdout.write("\n".join(clean(line) for line in text.split("\n")) + "\n")


def complain(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(clean(" ".join(text.split())) + "\n")
