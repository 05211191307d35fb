"""Logs of other programs: which of their fields are ours under another name, in another unit or place.

Only names and kinds of values are looked at, of the first objects of a log. What comes out is a program for
jq that makes native records of such a log, with what was assumed on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from monitor.formats import native

OTHER_NAMES = {
    "time": "timestamp",
    "ts": "timestamp",
    "@timestamp": "timestamp",
    "created": "timestamp",
    "created_at": "timestamp",
    "created_time": "timestamp",
    "start_time": "timestamp",
    "asctime": "timestamp",
    "datetime": "timestamp",
    "date": "timestamp",
    "model_name": "model",
    "model_id": "model",
    "engine": "model",
    "version": "model_version",
    "path": "endpoint",
    "route": "endpoint",
    "url": "endpoint",
    "call_type": "endpoint",
    "user": "tenant",
    "customer": "tenant",
    "org": "tenant",
    "status_code": "status",
    "http_status": "status",
    "error": "error_type",
    "latency": "latency_ms",
    "latency_s": "latency_ms",
    "latency_seconds": "latency_ms",
    "e2e_latency": "latency_ms",
    "duration": "latency_ms",
    "duration_ms": "latency_ms",
    "duration_s": "latency_ms",
    "elapsed": "latency_ms",
    "elapsed_ms": "latency_ms",
    "response_time": "latency_ms",
    "response_time_ms": "latency_ms",
    "ttft": "ttft_ms",
    "ttft_s": "ttft_ms",
    "time_to_first_token": "ttft_ms",
    "tpot": "tpot_ms",
    "time_per_output_token": "tpot_ms",
    "queue_time": "queue_ms",
    "time_in_queue": "queue_ms",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "generated_tokens": "output_tokens",
    "generation_tokens": "output_tokens",
    "stop_reason": "finish_reason",
    "cost": "cost_usd",
    "response_cost": "cost_usd",
    "id": "request_id",
    "trace_id": "request_id",
}
"""Names that other logs use, and what such a field is called here."""

MAX_DEPTH = 4
SECONDS_BELOW = 30.0
"""A latency without a unit in its name is taken as seconds if all are below and not whole."""
_ENDS = {"endTime": "startTime", "end_time": "start_time"}  # of a request, each with where its start stands
_WORD_STATUS = {"success": "ok", "succeeded": "ok", "failure": "error", "failed": "error"}
_ZONELESS = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?")
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_MEASURE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|%|)\s*$")

Path = tuple[str | int, ...]


def meaning_of(name: str) -> str | None:
    """What a field called `name` elsewhere (`promptTokens`, `prompt_tokens`) is called here."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return snake if snake in native.FIELDS else OTHER_NAMES.get(snake)


@dataclass(slots=True)
class Objects:
    """What the first objects of a log hold under names that may be known here, by where they stand."""

    count: int = 0
    have_metrics: bool = False
    values: dict[Path, list[Any]] = field(default_factory=dict)

    def add(self, found: dict[str, Any]) -> None:
        """Take one object into account."""
        self.count += 1
        self.have_metrics = self.have_metrics or isinstance(found.get("metrics"), dict)
        for path, value in _leaves(found):
            is_wrapper = len(path) == 1 and isinstance(value, str) and value.lstrip().startswith("{")
            if is_wrapper or path[-1] in _ENDS or meaning_of(str(path[-1])) is not None:
                self.values.setdefault(path, []).append(value)


def _leaves(found: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(found, dict) and len(path) < MAX_DEPTH:
        for name, value in found.items():
            yield from _leaves(value, (*path, name))
    elif isinstance(found, list) and found and isinstance(found[0], dict) and len(path) < MAX_DEPTH:
        yield from _leaves(found[0], (*path, 0))
    elif path and path[0] != "metrics" and found is not None and not isinstance(found, list | dict):
        yield path, found


@dataclass(frozen=True, slots=True)
class Conversion:
    """`program` is a jq filter from an object of the log to a native record; `assumed` is to be checked."""

    program: str
    assumed: list[str]


def wrapped_in(objects: Objects) -> str | None:
    """The field whose text is itself the JSON object that was logged, as log shippers write it; or None."""
    for path, values in objects.values.items():
        inner = [_object_in(value) for value in values[:20]]
        known = [each for each in inner if each is not None and {"model", "timestamp"} & each.keys()]
        if len(path) == 1 and len(known) > len(inner) / 2:
            return str(path[0])
    return None


def _object_in(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def conversion(objects: Objects) -> Conversion | None:
    """How native records are made of these objects; None if there is no need or no way.

    There is no way without something that can be `timestamp` and `model`.
    """
    wrapper = wrapped_in(objects)
    if wrapper is not None:
        inner = Objects()
        for value in objects.values[(wrapper,)]:
            found = _object_in(value)
            if found is not None:
                inner.add(found)
        rest = conversion(inner)
        program = f"{_jq_path((wrapper,))} | fromjson"
        return (
            Conversion(program, [])
            if rest is None
            else Conversion(f"{program} | {rest.program}", rest.assumed)
        )
    chosen = _chosen(objects)
    assumed: list[str] = []
    steps = {name: _step(name, path, objects.values[path], assumed) for name, path in chosen.items()}
    if all(path == (name,) for name, path in chosen.items()):
        changed = [f"{_jq_path(chosen[name])} |= {_guarded(step)}" for name, step in steps.items() if step]
        return Conversion(" | ".join(changed), assumed) if changed and _has_both(chosen) else None
    parts = [_part(name, path, steps[name]) for name, path in chosen.items()]
    if "latency_ms" not in chosen:
        parts += _from_start_and_end(objects)
    if objects.have_metrics:
        parts.append("metrics")
    return Conversion(f"{{{', '.join(parts)}}}", assumed) if _has_both(chosen) else None


def _has_both(chosen: dict[str, Path]) -> bool:
    return {"timestamp", "model"} <= chosen.keys()


def _part(name: str, path: Path, step: str) -> str:
    """One field of the object that jq makes."""
    if step:
        return f"{name}: ({_jq_path(path)} | {_guarded(step)})"
    return name if path == (name,) else f"{name}: {_jq_path(path)}"


def _guarded(step: str) -> str:
    """A field that is absent or null stays so."""
    return f"(if . then {step} else . end)"


def _chosen(objects: Objects) -> dict[str, Path]:
    """Field here -> where it stands in the log: its own name first, then what is least deep."""
    chosen: dict[str, tuple[tuple[bool, int, int], Path]] = {}
    for place, path in enumerate(objects.values):
        name = str(path[-1])
        meant = meaning_of(name)
        if meant is None or meant == "metrics" or len(objects.values[path]) * 2 < objects.count:
            continue
        rank = (name != meant, len(path), place)
        if meant not in chosen or rank < chosen[meant][0]:
            chosen[meant] = (rank, path)
    order = {name: i for i, name in enumerate(native.FIELDS)}
    return {name: chosen[name][1] for name in sorted(chosen, key=order.__getitem__)}


def _step(name: str, path: Path, values: list[Any], assumed: list[str]) -> str:
    """What jq must do to the values of one field, for their type and unit; "" for nothing."""
    shown = ".".join(map(str, path))
    texts = [value for value in values if isinstance(value, str)]
    if name == "timestamp":
        return _time_step(shown, texts, assumed)
    if name == "status":
        words = {value.lower() for value in texts}
        pairs = ", ".join(f'"{word}": "{meant}"' for word, meant in _WORD_STATUS.items())
        known = words & _WORD_STATUS.keys()
        return f'if type == "string" then ({{{pairs}}}[ascii_downcase] // .) else . end' if known else ""
    if name not in (*native.AMOUNTS, *native.SHARES):
        return ""
    measures = [_MEASURE.match(value) for value in texts]
    if not all(measures):
        return ""  # no number to be had
    units = {measure[2] for measure in measures if measure is not None}
    taken = "tonumber" if units <= {""} else 'capture("(?<n>[0-9.]+)").n | tonumber'
    numbers = [float(measure[1]) for measure in measures if measure is not None]
    numbers += [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    steps = [taken] if texts else []
    if name.endswith("_ms") and numbers and _in_seconds(str(path[-1]), numbers, units):
        assumed.append(f"`{shown}` counts seconds")
        steps.append(". * 1000")
    elif name in native.SHARES and numbers and 1 < max(numbers) <= 100:
        assumed.append(f"`{shown}` is a percentage")
        steps.append(". / 100")
    return " | ".join(steps)


def _time_step(shown: str, texts: list[str], assumed: list[str]) -> str:
    if texts and all(_DIGITS.fullmatch(value) for value in texts):
        return "tonumber"
    if texts and all(_ZONELESS.fullmatch(value) for value in texts):
        assumed.append(f"`{shown}` is UTC")
        return 'sub(" "; "T") | sub(","; ".") + "Z"'
    return ""


def _in_seconds(name: str, numbers: list[float], units: set[str]) -> bool:
    lower = name.lower()
    if lower.endswith(("_ms", "millis", "milliseconds")) or units:
        return units == {"s"}
    if lower.endswith(("_s", "_sec", "_secs", "seconds")):
        return True
    return max(numbers) < SECONDS_BELOW and any(number != int(number) for number in numbers)


def _from_start_and_end(objects: Objects) -> list[str]:
    """A latency out of two times in seconds, where none is logged."""
    for end, start in _ENDS.items():
        both = [objects.values.get((name,), [None])[0] for name in (start, end)]
        if all(isinstance(each, int | float) for each in both):
            return [f"latency_ms: (if .{start} and .{end} then (.{end} - .{start}) * 1000 else null end)"]
    return []


def _jq_path(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}"
        else:
            text += f"{'' if text else '.'}[{json.dumps(part)}]"
    return text
