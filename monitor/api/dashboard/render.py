"""How the pages say things: times with their age, figures with their unit, names made harmless."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from monitor import explain
from monitor.output import clean, number, plain
from storage.shown import time_of

STATIC_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".md": "text/markdown",
}
SOURCE_PREFIX = "source:"
_AGES = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"))
_EVENT_WORDS = {
    "opened": "Incident opened",
    "reopened": "Came back",
    "alert_joined": "Another series joined",
    "alert_updated": "Still going on",
    "version_compared": "New version compared",
    "alert_resolved": "One series is back to normal",
    "new_normal": "This is the new normal",
    "severity_raised": "Got worse",
    "resolved": "Resolved",
    "alert_withdrawn": "An alert was withdrawn",
    "acknowledged": "Acknowledged",
    "labelled": "Labelled",
    "noted": "Note",
    "notification_silenced": "Kept quiet by a silence",
    "notification_inhibited": "Kept quiet by what explains it",
}
_STEP_WORDS = {
    "fired": "Fired",
    "updated": "Changed",
    "resolved": "Over",
    "withdrawn": "Withdrawn: late records made every window of it normal",
    "compared": "Compared with the version before",
}
_LABEL_WORDS = {"true_positive": "real problem", "false_positive": "false alarm"}
_RESOLUTIONS = {
    "recovered": "by itself",
    "new_normal": "learned as the new normal",
    "withdrawn": "withdrawn after late data",
    "by_person": "by a person",
}
_FIELD_WORDS = {"model_version": "version", "error_type": "error type"}
_REASONS = {
    "spike": "one window was far too rare",
    "sustained": "weak evidence went on for too long",
    "new_normal": "it lasted and was learned as the new normal",
    "source_gap": "records were lost before they were read",
}


def environment() -> Environment:
    """Templates that escape everything, spell out control characters, and fail on an unknown name."""
    env = Environment(
        loader=PackageLoader("monitor.api", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=harmless,
    )
    env.filters |= {
        "figure": figure,
        "quantity": quantity,
        "feature": explain.feature_words,
        "json": to_json,
        "exact_json": exact_json,
        "moment": moment,
        "at": time_of,
        "date": date,
        "length_of": span,
        "count": count,
        "plural": plural,
        "share": share,
        "lines": lines,
        "event_words": lambda kind: _EVENT_WORDS.get(kind, str(kind).replace("_", " ").capitalize()),
        "step_words": lambda kind: _STEP_WORDS.get(kind, kind),
        "label_words": lambda label: _LABEL_WORDS.get(label, label),
        "resolution_words": lambda r: _RESOLUTIONS.get(r, str(r or "").replace("_", " ")),
        "field_words": lambda field: _FIELD_WORDS.get(field, str(field).replace("_", " ")),
        "trait_words": trait_words,
        "reason_words": lambda reason: _REASONS.get(reason, str(reason).replace("_", " ")),
        "series_href": series_href,
    }
    env.globals["static"] = static_href
    return env


def trait_words(trait: str) -> str:
    """What two incidents share, in words: `feature latency_p99_ms` -> `p99 latency`."""
    kind, _, name = trait.partition(" ")
    if kind == "feature":
        return explain.feature_words(name)
    return f"{_FIELD_WORDS.get(kind, kind.replace('_', ' '))} {name}"


def harmless(value: Any) -> Any:
    """Text from a log with control and invisible formatting characters spelled out; all else as it is."""
    return clean(value) if type(value) is str else value


def lines(text: str) -> Markup:
    """Text of several lines as a person wrote it, harmless, with its line breaks."""
    return Markup("<br>").join(escape(clean(line)) for line in text.splitlines())


def figure(value: Any) -> str:
    """A bare number at four digits, `-` for nothing."""
    return "-" if value is None else number(float(value))


def quantity(value: Any, feature: str) -> str:
    """A value of a feature with its unit, `-` for nothing."""
    return "-" if value is None else explain.quantity(feature, float(value))


def count(value: Any) -> str:
    """Thousands apart: 12,345."""
    return "-" if value is None else f"{int(value):,}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 incident`, `2 incidents`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def share(value: float) -> str:
    """0.783 -> 78%."""
    return f"{value:.0%}"


def to_json(value: Any) -> str:
    """JSON for a data attribute: names harmless, numbers short, nothing that is not finite."""
    return json.dumps(_harmless_data(plain(value)), ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def exact_json(value: Any) -> str:
    """JSON that a form sends back: names unchanged, in ASCII."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _harmless_data(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {clean(str(k)): _harmless_data(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_harmless_data(v) for v in value]
    return value


def span(ms: float) -> str:
    """A length of time in one or two units: 95 s -> `1 min`, 8,000 s -> `2 h 13 min`."""
    ms = max(0.0, ms)
    if ms < 60_000:
        return f"{ms / 1000:.0f} s"
    for i, (size_ms, unit) in enumerate(_AGES):
        if ms >= size_ms:
            whole, rest = divmod(int(ms), size_ms)
            if i + 1 < len(_AGES) and whole < 10 and (part := rest // _AGES[i + 1][0]):
                return f"{whole} {unit} {part} {_AGES[i + 1][1]}"
            return f"{whole} {unit}"
    raise AssertionError(ms)


def epoch_ms(value: datetime) -> int:
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


def date(value: datetime | None) -> str:
    """`2026-01-31 12:00`, UTC; `-` for nothing."""
    return "-" if value is None else value.strftime("%Y-%m-%d %H:%M")


@pass_context
def moment(context: Context, value: datetime | None, clock: str = "event") -> Markup:
    """A time with its age, as a <time> element; `clock` says whose now counts: the log's or the wall's."""
    if value is None:
        return Markup("<span>-</span>")
    now_ms = context["now_ms"] if clock == "event" else context["wall_ms"]
    age_ms = now_ms - epoch_ms(value)
    ago = f"{span(age_ms)} ago" if age_ms >= 0 else f"in {span(-age_ms)}"
    exact = value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}" title="{}">{} <span class="age">({})</span></time>').format(
        exact, exact, date(value), ago
    )


def series_href(name: str) -> str:
    """Address of a series' page; names that a path cannot carry go into the query.

    What is told about a partition of the log itself has the sources for its page.
    """
    if name.startswith(SOURCE_PREFIX):
        return "/sources"
    if name in ("", ".", "..") or not name.isprintable():
        return f"/series?name={quote(name, safe='')}"
    return f"/series/{quote(name, safe='')}"


def static_root() -> Traversable:
    return files("monitor.api").joinpath("static")


@lru_cache(maxsize=64)
def static_file(name: str) -> tuple[bytes, str] | None:
    """Content and media type of a static file by its path below static/; None = there is none."""
    parts = name.split("/")
    if len(parts) > 2 or any(not part or part.startswith(".") for part in parts):
        return None
    media_type = STATIC_TYPES.get("." + name.rpartition(".")[2])
    file = static_root().joinpath(*parts)
    if media_type is None or not file.is_file():
        return None
    return file.read_bytes(), media_type


@lru_cache(maxsize=64)
def static_href(name: str) -> str:
    """Address of a static file that changes with its content, so that browsers may keep it."""
    found = static_file(name)
    assert found is not None, name
    return f"/static/{name}?v={hashlib.sha256(found[0]).hexdigest()[:12]}"
