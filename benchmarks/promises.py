"""Every promise of docs/reliability.md, put to the test one after the other: one table at the end.

    python -m benchmarks.promises [--short] [--only NAME ...] [--keep DIR]

In full it takes about four hours on two cores; `--short` runs the same with small sizes. What each part says
is kept in DIR/NAME.txt. Exits 1 if a promise is broken, or if a part ended without an answer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Part:
    script: str
    full: str  # arguments
    short: str


_OUTAGES = (
    "--forked --records 150000 --broker-kills 20 --broker-hangs 2 --database-stops 2 --down-s 60 --hang-s 40"
)
_CALM = "--kills 0 --freezes 0 --broker-kills 0 --broker-hangs 0 --database-stops 0"
PARTS = {
    "fleet": Part(
        "chaos.py",
        "--forked --records 1000000 --kills 100 --freezes 30",
        "--forked --records 12000 --kills 3 --freezes 1 --terms 1 --rebalances 1 --broker-kills 1 "
        "--broker-hangs 0 --database-stops 1 --down-s 8",
    ),
    "one-daemon": Part(
        "chaos.py",
        "--forked --sqlite --records 1000000 --kills 100 --freezes 30 --seed 3",
        f"--forked --sqlite --records 12000 {_CALM} --kills 3 --terms 1 --rebalances 0",
    ),
    "outages": Part("chaos.py", f"{_OUTAGES} --seed 2", f"--forked --records 12000 {_CALM} --broker-kills 2"),
    "joins": Part(
        "chaos.py",
        f"--forked --records 60000 {_CALM} --terms 100 --rebalances 100",
        f"--forked --records 12000 {_CALM} --terms 3 --rebalances 3",
    ),
    "boundaries": Part("faults.py", "boundaries", "boundaries --every 60"),
    "boundaries-postgres": Part("faults.py", "boundaries --postgres", "boundaries --postgres --every 60"),
    "disk": Part("faults.py", "disk", "disk"),
    "clock": Part("faults.py", "clock", "clock"),
    "fuzz": Part(
        "faults.py",
        "fuzz --postgres --through-broker 200000",
        "fuzz --postgres --records 20000 --through-broker 2000 --bombs 3 --corrupt 3",
    ),
    "models": Part("faults.py", "models", "models --files 10"),
    "receiver": Part("faults.py", "receiver --down-s 600", "receiver --down-s 5 --incidents 3 --kills 1"),
    "lag": Part("faults.py", "lag --down-s 600", "lag --down-s 20"),
    "series": Part("crowd.py", "", "--series 3000 --max-series 500"),
    "a-million-series": Part("crowd.py", "--series 1000000", "--series 6000 --max-series 500"),
    "restart": Part("restart.py", "", "--records 60000"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What one part says of one promise."""

    part: str
    promise: str
    count: str
    kept: bool


def found_in(part: str, said: str, code: int) -> list[Found]:
    """The promises in what a part has printed; its last line where it prints no list of them."""
    found = []
    for line in said.splitlines():
        verdict, _, rest = line.partition(" ")
        if verdict in ("kept", "BROKEN"):
            promise, _, count = rest.strip().rpartition(": ")
            found.append(Found(part, promise, count, verdict == "kept"))
    answered = code == 0 and bool(said.strip())
    if not found or (code != 0 and all(each.kept for each in found)):
        last = said.strip().splitlines()[-1] if said.strip() else f"nothing was said, exit code {code}"
        found.append(Found(part, "ends with an answer", last, answered))
    return found


def run(name: str, part: Part, *, short: bool, folder: Path) -> list[Found]:
    """One part, in a process of its own; what it says goes to folder/name.txt."""
    arguments = (part.short if short else part.full).split()
    with (folder / f"{name}.txt").open("w+", encoding="utf-8") as said:
        done = subprocess.run(
            [sys.executable, str(HERE / part.script), *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            check=False,
        )
        said.seek(0)
        return found_in(name, said.read(), done.returncode)


def table(found: list[Found]) -> str:
    rows = [f"| {f.part} | {f.promise} | {f.count} | {'kept' if f.kept else '**broken**'} |" for f in found]
    return "\n".join(["| part | promise | counted | |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small sizes: minutes instead of hours")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--keep", type=Path, help="folder for what each part says")
    options = parser.parse_args()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found += run(name, PARTS[name], short=options.short, folder=folder)
    print(table(found))
    return 0 if all(each.kept for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
