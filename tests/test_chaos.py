"""Three daemons of one group, killed, frozen and moved about: what they leave equals an undisturbed run.

The long form is benchmarks/chaos.py.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import SERVICES, faults_of_log, log_lines, log_minutes
from tests import services
from tests.audit import audit, wait_settled
from tests.daemons import Daemon
from tests.fleet import Fleet, stop_all, write_config
from tests.forks import Forks
from tests.logs import lines, with_bad_lines
from tests.receivers import hook
from tests.trickle import Trickle, by_series, end_offsets, run_faults

PARTITIONS, DAEMONS, KILLS, SEED = 6, 3, 5, 3


@pytest.mark.parametrize("records", [60_000, 1_000_000])
def test_the_log_of_the_long_form_has_dozens_of_strong_faults(records: int) -> None:
    faults = faults_of_log(log_minutes(records))
    assert len(faults) >= 3 * SERVICES
    assert len(set(faults)) == len(faults)


def test_the_log_of_the_long_form_shows_its_faults(tmp_path: Path) -> None:
    """A run without alerts, incidents and deliveries would compare nothing."""
    found = [record for record in map(record_of, log_lines(tmp_path, 60_000, seed=1)) if record]
    assert 40_000 < len(found) < 80_000
    failed = Counter((r["model"], r["endpoint"]) for r in found if str(r.get("status")).startswith("5"))
    assert len({(r["model"], r["endpoint"]) for r in found}) == SERVICES
    assert sum(count > 30 for count in failed.values()) >= SERVICES // 2


def record_of(message: bytes) -> dict[str, Any]:
    try:
        record = json.loads(message)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and "request_id" in record else {}


@pytest.mark.kafka
@pytest.mark.timeout(1_800)  # what it asserts does not depend on how busy the machine is
def test_a_fleet_under_faults_loses_nothing(
    kafka_bootstrap: str, kafka_topic: Callable[..., str], postgres_url: str, tmp_path: Path
) -> None:
    topic = kafka_topic(partitions=PARTITIONS)
    messages = by_series(
        with_bad_lines(lines(services=PARTITIONS, minutes=240, per_minute=6, fault_at=90)), PARTITIONS
    )
    disturbed, oracle = (services.create_database(postgres_url) for _ in range(2))
    common = {"bootstrap": kafka_bootstrap, "topic": topic}
    with hook() as received, hook() as oracle_received:
        config = write_config(
            tmp_path / "fleet.toml",
            **common,
            group=f"{topic}-fleet",
            database=disturbed,
            webhook=received.url,
        )
        forks = Forks()
        fleet = Fleet(tmp_path, config, disturbed, random.Random(SEED), DAEMONS, forks)
        faults = [("kill", fleet.kill)] * KILLS + [
            ("freeze", fleet.freeze),
            ("join", fleet.join),
            ("leave", fleet.leave),
        ]
        fleet.rng.shuffle(faults)
        trickle = Trickle(kafka_bootstrap, topic, messages, len(faults))
        try:
            for _ in range(DAEMONS):
                fleet.add()
            trickle.start()
            read = run_faults(fleet, trickle, faults)
            trickle.join()
            produced = sum(end_offsets(kafka_bootstrap, topic).values())
            assert produced == len(messages)
            oracle_config = write_config(
                tmp_path / "oracle.toml", **common, group=f"{topic}-oracle", database=oracle,
                webhook=oracle_received.url,
            )  # fmt: skip
            with Daemon(oracle_config, tmp_path / "oracle.log", forks=forks) as daemon:
                wait_settled("disturbed", disturbed, produced, fleet.daemons[0])
                stop_all(fleet)
                wait_settled("undisturbed", oracle, produced, daemon)
        finally:
            fleet.close()
            forks.close()
        promises = audit(
            database=disturbed, oracle=oracle, produced=produced, read_under_faults=read,
            received=received, oracle_received=oracle_received, fleet=fleet,
        )  # fmt: skip
    assert fleet.faults["kill -9"] == KILLS and fleet.faults["SIGSTOP longer than the session"] == 1
    assert [promise for promise in promises if not promise.kept and not promise.timed] == []
    for url in (disturbed, oracle):
        services.drop_database(postgres_url, url)
