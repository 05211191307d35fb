"""Interleaved rounds of one run: every contender in turn, each in a process of its own, and their ratios."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was at the start."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory_gb, 1),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def child(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """The JSON object on the last line that a command prints. Raises RuntimeError when it fails."""
    done = subprocess.run(
        [*command], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def interleave(
    contenders: dict[str, Callable[[], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """The results of every contender, one per round; each round runs all of them."""
    found: dict[str, list[Result]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            found[name].append(run())
            print(f"round {number + 1}: {name} {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    """min / median / max."""
    return f"{min(values):.3g} / {statistics.median(values):.3g} / {max(values):.3g}"


def ratios(found: dict[str, list[dict[str, Any]]], of: str, to: str, figure: str) -> list[float]:
    """figure of one contender divided by that of another, per round."""
    return [a[figure] / b[figure] for a, b in zip(found[of], found[to], strict=True)]


def cpu_s() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def save(name: str, result: dict[str, Any], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")
