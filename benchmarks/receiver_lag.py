"""Does a receiver that misbehaves slow the reader down? A section of faults.py.

Two daemons read one topic while it is written at a steady pace, each in a consumer group and over a database
of its own. All receivers of the one work; the other has, beside a good one, receivers that are down, hang,
drip, answer 500, 429 or too late. Lag is what lies in the topic and is not accounted for in the database.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaProducer

from benchmarks.receiver_faults import Receiver, Row, answering_late, plain, wait_until
from tests import services
from tests.daemons import Daemon, rows, totals, wait_for
from tests.receivers import drip_headers, hang, hook
from tests.trickle import by_series

PARTITIONS, PER_S, SAMPLE_S = 2, 200, 0.5
TOLERANCE_S = 1.0  # of records, between the two daemons
STATES = "select channel, status, attempts, delivery_id from deliveries"


def receivers() -> dict[str, Receiver]:
    found = {
        "good": Receiver("good", None),
        "hanging": Receiver("hanging", hang(5.0)),
        "slow-drip": Receiver("slow-drip", drip_headers),
        "500": Receiver("500", plain(500)),
        "429": Receiver("429", plain(429, retry_after="2")),
        "down": Receiver("down", None),
        "late-answer": Receiver("late-answer", None),
    }
    found["late-answer"].bad = answering_late(found["late-answer"])
    return found


def write_config(path: Path, *, bootstrap: str, topic: str, database: str, urls: dict[str, str]) -> Path:
    path.write_text(
        f'[source]\nbootstrap_servers = "{bootstrap}"\ntopics = ["{topic}"]\ngroup_id = "{path.stem}"\n'
        f'[database]\nurl = "{database}"\n[http]\nenabled = false\n[training]\nenabled = false\n'
        "[delivery]\ntimeout_s = 1\nbackoff_initial_s = 0.1\nbackoff_max_s = 1\n"
        + "".join(f'[channels."{name}"]\nurl = "{url}"\nallow_private = true\n' for name, url in urls.items())
    )
    return path


class Pace(threading.Thread):
    """Produces the messages in order, PER_S of them a second."""

    def __init__(self, bootstrap: str, topic: str, messages: Sequence[tuple[int, bytes]]) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic, self.messages = bootstrap, topic, messages
        self.sent = 0

    def run(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=5)
        begun_s = time.monotonic()
        while self.sent < len(self.messages):
            due = min(int((time.monotonic() - begun_s) * PER_S), len(self.messages))
            for partition, value in self.messages[self.sent : due]:
                producer.send(self.topic, value=value, partition=partition)
            producer.flush()
            self.sent = due
            time.sleep(0.05)
        producer.close()


def watch(pace: Pace, databases: dict[str, str]) -> dict[str, list[int]]:
    """Records of lag, every SAMPLE_S, as long as something is produced."""
    lags: dict[str, list[int]] = {name: [] for name in databases}
    while pace.is_alive():
        for name, url in databases.items():
            with contextlib.suppress(Exception):  # the database is being made
                sent = pace.sent
                lags[name].append(max(sent - totals(url)["position"], 0))
        time.sleep(SAMPLE_S)
    return lags


def seconds(lags: list[int], percentile: float) -> float:
    return float(np.percentile(lags, percentile)) / PER_S


def receiver_lag(folder: Path, log: list[bytes], *, down_s: float) -> Iterator[Row]:
    """`log`: more messages than are produced in `down_s`."""
    messages = by_series(log[: int(down_s * PER_S)], PARTITIONS)
    broker = services.Broker().start()
    databases = {name: f"sqlite:///{folder / name}.db" for name in ("calm", "plagued")}
    all_of = receivers()
    (port,) = services.free_ports(1)
    with ExitStack() as stack:
        stack.callback(broker.stop)
        topic = services.create_topic(broker.bootstrap, partitions=PARTITIONS)
        calm = Receiver("good", None)
        urls = {name: stack.enter_context(hook(r)).url for name, r in all_of.items() if name != "down"}
        urls["down"] = f"http://127.0.0.1:{port}/hook"
        daemons = {}
        for name, channels in (("calm", {"good": stack.enter_context(hook(calm)).url}), ("plagued", urls)):
            config = write_config(
                folder / f"{name}.toml", bootstrap=broker.bootstrap, topic=topic,
                database=databases[name], urls=channels,
            )  # fmt: skip
            daemons[name] = stack.enter_context(Daemon(config, folder / f"{name}.log"))
            owned = lambda url=databases[name]: claimed(url) == PARTITIONS  # noqa: E731
            wait_for("every partition has an owner", owned, 300, daemons[name])
        pace = Pace(broker.bootstrap, topic, messages)
        pace.start()
        lags = watch(pace, databases)
        for receiver in all_of.values():
            receiver.healed.set()
        stack.enter_context(hook(all_of["down"], port=port))
        told = {name: wait_until(lambda url=url: settled(url, len(messages)), 300)  # type: ignore[misc]
                for name, url in databases.items()}  # fmt: skip
        yield from lag_rows(lags, len(messages))
        for receiver in all_of.values():
            yield channel_row(databases["plagued"], receiver)
        for name, daemon in daemons.items():
            code = daemon.stop(30)
            yield f"{name}: everything read and told, ended with", f"code {code}", told[name] and code == 0


def claimed(url: str) -> int:
    with contextlib.suppress(Exception):  # the database is being made
        return int(rows(url, "select count(*) as n from partitions where owner is not null")[0]["n"])
    return 0


def settled(url: str, produced: int) -> bool:
    waiting = "select count(*) as n from deliveries where status in ('pending', 'claimed')"
    return totals(url)["position"] == produced and not rows(url, waiting)[0]["n"]


def lag_rows(lags: dict[str, list[int]], produced: int) -> Iterator[Row]:
    for name, found in lags.items():
        count = ", ".join(f"p{p:g} {seconds(found, p):.2f} s" for p in (50, 95, 100))
        yield f"{name}: lag at {PER_S} records/s, {len(found)} looks, {produced:,} records", count, True
    apart_s = seconds(lags["plagued"], 95) - seconds(lags["calm"], 95)
    yield "p95 of the lag with receivers that misbehave", f"{apart_s:+.2f} s", apart_s <= TOLERANCE_S


def channel_row(url: str, receiver: Receiver) -> Row:
    found: list[dict[str, Any]] = [r for r in rows(url, STATES) if r["channel"] == receiver.name]
    wanted, got = {r["delivery_id"] for r in found}, set(receiver.accepted)
    attempts, missing = sum(r["attempts"] for r in found), len(wanted - got)
    count = f"{len(wanted)} ids, {missing} missing, {attempts} attempts"
    return f"channel {receiver.name}", count, not missing and bool(wanted)
