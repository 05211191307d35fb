"""Compiles once what most tests need, before several workers would each do it: `python -m tests.compiled`."""

from __future__ import annotations

from detectors.ensemble import Ensemble
from monitor.config import Settings
from monitor.sources import cutting
from monitor.warming import warm_up


def main() -> None:
    cutting.warm_up()
    warm_up(Settings(), Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000))


if __name__ == "__main__":
    main()
