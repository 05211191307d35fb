"""Who judges, and is left out of what the judged model learns from.

`JUDGE_CLIENTS` were taken as every third workload in order of mean rate, so both sides hold rare and
busy, steady and bursty services. `HELD_OUT_KINDS` are fault kinds that training must not imitate:
recall on them is printed apart.
"""

from __future__ import annotations

from pathlib import Path

HELD_OUT_MODEL = Path(__file__).resolve().parent / "held_out.iwm"
"""The twin of the shipped prior that has seen nothing of the benchmark: `build_prior --held-out`."""
JUDGE_CLIENTS: tuple[str, ...] = (
    "servegen-114",
    "servegen-12",
    "servegen-133",
    "servegen-143",
    "servegen-147",
    "servegen-31",
    "servegen-35",
    "servegen-48",
    "servegen-49",
    "servegen-56",
    "servegen-64",
    "servegen-69",
    "servegen-76",
    "servegen-78",
    "servegen-83",
    "servegen-94",
)
HELD_OUT_KINDS: tuple[str, ...] = (
    "retry_storm",
    "flapping",
    "stuck",
    "input_loss",
    "region_down",
    "timeouts",
)


def train_clients(every: list[str]) -> list[str]:
    """The workloads (of all names) that prior models may be trained on."""
    return [name for name in every if name not in JUDGE_CLIENTS]
