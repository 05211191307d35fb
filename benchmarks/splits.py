"""Who may be learned from and who judges. Nothing that ships is trained on a judge's client.

`JUDGE_CLIENTS` were taken as every third workload in order of mean rate, so both sides hold rare and
busy, steady and bursty services. `HELD_OUT_KINDS` are fault kinds that training must not imitate:
recall on them is printed apart.
"""

from __future__ import annotations

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
