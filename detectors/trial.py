"""Try a model out in a process of its own: LightGBM's loader can crash on a file that was tampered with.

    python -m detectors.trial < MODEL      # prints its golden scores as a JSON list, or fails

Golden scores are what a model answers for a few fixed windows. Whoever registers a model keeps them; whoever
is about to use it asks for them again first.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from detectors import artifacts
from detectors.base import Scorer
from detectors.types import STATISTICS, WindowBatch

WINDOWS, WINDOW_MS, TOLERANCE = 8, 60_000, 0.02
TIMEOUT_S = 45.0  # less than the watchdog of the reading loop allows


class ModelRefusedError(ValueError):
    """A model that must not be used; the message says why."""


def golden(scorer: Scorer) -> list[float]:
    """Scores and tail probabilities, 0 to 1, for fixed windows of two series, the second slow in the end."""
    found: list[float] = []
    states = scorer.new_states()
    for n in range(WINDOWS):
        values = np.full((2, len(STATISTICS)), 1.0 + 0.05 * (n % 3))
        values[1] *= 6.0 if n >= WINDOWS - 2 else 1.0
        counts = np.full((2, len(STATISTICS)), 20.0)
        scores = scorer.score(WindowBatch(n * WINDOW_MS, WINDOW_MS, ["a", "b"], values, counts), states)
        found += [*scores.score.tolist(), *scores.tail_probability.tolist()]
    return [round(float(x), 6) for x in found]


def try_out(artifact: bytes, expected: list[float] | None, *, timeout_s: float = TIMEOUT_S) -> None:
    """Raises ModelRefusedError for an artefact that is damaged, crashes or hangs its loader, answers with
    something that is no probability, or answers otherwise than `expected` (None: not known).
    """
    try:
        artifacts.verify(artifact)
    except ValueError as error:
        raise ModelRefusedError(str(error)) from None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "detectors.trial"], input=artifact, capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise ModelRefusedError(f"the trial took longer than {timeout_s:g} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise ModelRefusedError(f"the trial ended with {done.returncode}: {said[0][:200]}")
    check(json.loads(done.stdout.splitlines()[-1]), expected)


def check(answered: list[float], expected: list[float] | None) -> None:
    """Pure. Raises ModelRefusedError for answers that are no probabilities, or not the expected ones."""
    scores = np.array(answered, float)
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise ModelRefusedError("its scores are no probabilities")
    if expected is not None and not (
        len(expected) == len(scores) and np.allclose(scores, expected, rtol=0.0, atol=TOLERANCE)
    ):
        raise ModelRefusedError("its scores are not those it was registered with")


def main() -> None:
    artifact = sys.stdin.buffer.read()
    ensemble = artifacts.load(artifact, false_alarms_per_week=1.0, window_ms=WINDOW_MS)
    sys.stdout.write(json.dumps(golden(ensemble)) + "\n")


if __name__ == "__main__":
    main()
