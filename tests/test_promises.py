"""One table of all promises: every answer of a part is in it, and none that is broken passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.promises import PARTS, found_in


def test_answers_are_read_as_they_were_given() -> None:
    said = "reading\nkept    nothing is lost: 5 of 5\nBROKEN  equal to a run: at 12:30: 1 differs\n"
    kept, broken = found_in("disk", said, 1)
    assert (kept.promise, kept.count, kept.kept) == ("nothing is lost", "5 of 5", True)
    assert (broken.promise, broken.count, broken.kept) == ("equal to a run: at 12:30", "1 differs", False)


def test_a_part_that_ends_without_an_answer_is_broken() -> None:
    (crashed,) = found_in("series", "Traceback\nKeyError: 'x'\n", 1)
    assert not crashed.kept and crashed.count == "KeyError: 'x'"
    answered, cut_off = found_in("disk", "kept  nothing is lost: 5\n", 137)
    assert answered.kept and not cut_off.kept
    (silent,) = found_in("disk", "", 0)
    assert not silent.kept and "exit code 0" in silent.count
    (equal,) = found_in("restart", "1,000 records\nequal\n", 0)
    assert equal.kept and equal.count == "equal"


def test_one_command_prints_one_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.promises", "--short", "--only", "clock", "disk"]
    done = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert {row[0] for row in rows} == {"| clock", "| disk"} and all(row[-1] == "kept |" for row in rows)
    assert "partial results meanwhile" in done.stdout and "windows, alerts, incidents equal" in done.stdout
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["clock", "disk"]


def test_every_part_can_be_called() -> None:
    """Its arguments are those of its script."""
    helps: dict[str, str] = {}
    for part in PARTS.values():
        if part.script not in helps:
            script = str(Path(__file__).parent.parent / "benchmarks" / part.script)
            told = subprocess.run(
                [sys.executable, script, "--help"], capture_output=True, text=True, check=True
            )
            helps[part.script] = told.stdout
        for word in (*part.full.split(), *part.short.split()):
            if word.startswith("--"):
                assert word in helps[part.script], (part, word)
