"""What a webhook receiver can do to the real delivery worker, over real HTTP; a section of faults.py.

Every fault has a channel and a receiver of its own, beside one that works. Each gets the opening and the
end of some incidents, written to the outbox as the ledger writes them. The receivers misbehave for a while,
all at once, and work from then on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine, select

from monitor.channels.webhook import WebhookChannel
from monitor.clock import SystemClock
from monitor.config import ChannelSettings, DeliverySettings, Settings
from monitor.delivery import DeliveryWorker, make_channels
from storage import schema
from storage.engine import connect, upgrade
from storage.folding import write_changes
from storage.outbox import Outbox
from storage.types import IncidentChanges, OutboxRow
from tests import services
from tests.receivers import Hook, drip_headers, hang, hook

TIMEOUT_S, ASKED_S, LATE_S = 1.0, 2, 1.5
DELIVERIES = schema.table(schema.DeliveryTable)
Row = tuple[str, str, bool]  # promise, count, kept
ROWS = {1: "incident.opened", 2: "incident.resolved"}


@dataclass
class Receiver:
    """One channel's receiver: `bad` answers until `heal`, "accepted" is what it said 200 to."""

    name: str
    bad: Callable[[Any], None] | None
    healed: threading.Event = field(default_factory=threading.Event)
    came: list[tuple[float, str]] = field(default_factory=list)  # seconds, delivery id
    accepted: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, handler: Any) -> None:
        name = handler.headers["webhook-id"]
        with self.lock:
            self.came.append((time.monotonic(), name))
        if self.bad is not None and not self.healed.is_set():
            self.bad(handler)
        else:
            self.accept(handler)

    def accept(self, handler: Any) -> None:
        with self.lock:
            self.accepted.append(handler.headers["webhook-id"])
        plain(200)(handler)


def plain(status: int, **headers: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


class Gigabytes:
    """Says 200 with a body of a gigabyte; counts what it got rid of."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver, self.most = receiver, 0

    def __call__(self, handler: Any) -> None:
        sent = 0
        with self.receiver.lock:
            self.receiver.accepted.append(handler.headers["webhook-id"])
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
            for _ in range(1024):
                handler.wfile.write(bytes(1 << 20))
                sent += 1 << 20
        except OSError:
            pass
        self.most = max(self.most, sent)


def outbox_rows(channel: str, incidents: int) -> list[OutboxRow]:
    return [
        OutboxRow(f"{channel}_{i}_{n}", f"i{i}", n, event, channel, '{"a":1}', 0)
        for i in range(incidents)
        for n, event in ROWS.items()
    ]


def put(engine: Engine, rows: list[OutboxRow]) -> None:
    with engine.begin() as connection:
        write_changes(connection, IncidentChanges([], [], [], rows))


def status(engine: Engine, channel: str) -> tuple[Counter[str], int]:
    """How many deliveries of a channel are in which state, and how many attempts they took."""
    wanted = select(DELIVERIES).where(DELIVERIES.c.channel == channel)
    with engine.connect() as connection:
        found = list(connection.execute(wanted))
    return Counter(row.status for row in found), sum(row.attempts for row in found)


def overtaken(ids: list[str]) -> int:
    """Ends that arrived before the last arrival of their opening."""
    opened: dict[str, int] = {}
    ended: dict[str, int] = {}
    for at, name in enumerate(ids):
        incident, _, n = name.rpartition("_")
        if n == "1":
            opened[incident] = at
        else:
            ended.setdefault(incident, at)
    return sum(opened.get(incident, len(ids)) > at for incident, at in ended.items())


def told(engine: Engine, receiver: Receiver, incidents: int, detail: str = "", kept: bool = True) -> Row:
    states, attempts = status(engine, receiver.name)
    with receiver.lock:
        accepted, arrivals = list(receiver.accepted), [name for _, name in receiver.came]
    wanted = {row.delivery_id for row in outbox_rows(receiver.name, incidents)}
    missing, doubled = len(wanted - set(accepted)), len(accepted) - len(set(accepted))
    late = overtaken(arrivals)
    count = f"{len(wanted)} ids, {missing} missing, {doubled} received again, {attempts} attempts, "
    count += f"{late} ends before their opening{detail}"
    done = states == Counter({"delivered": len(wanted)})
    return receiver.name.replace("-", " "), count, kept and done and not missing and not late


def certificate(folder: Path) -> Path:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    name = ["-subj", "/CN=receiver", "-addext", "subjectAltName=IP:127.0.0.1"]
    program = services.need("openssl", "openssl")
    command = [program, "req", "-x509", "-days", "2", "-out", "cert.pem", *key, *name]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def answering_late(receiver: Receiver) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        time.sleep(LATE_S)
        receiver.accept(handler)

    return answer


def settings_for(urls: dict[str, str]) -> Settings:
    return Settings(
        delivery=DeliverySettings(timeout_s=TIMEOUT_S, backoff_initial_s=0.1, backoff_max_s=1.0),
        channels={name: ChannelSettings(url=url, allow_private=True) for name, url in urls.items()},
    )


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def shortest_wait_s(came: list[tuple[float, str]]) -> float:
    """Between two attempts of the same notification."""
    last: dict[str, float] = {}
    waits = []
    for at_s, name in came:
        if name in last:
            waits.append(at_s - last[name])
        last[name] = at_s
    return min(waits, default=float("inf"))


def misbehaving(folder: Path, incidents: int, down_s: float) -> Iterator[Row]:
    """All faults at once, each on a channel of its own."""
    engine = connect(f"sqlite:///{folder / 'receivers.db'}")
    upgrade(engine)
    receivers = {
        "slow-drip": Receiver("slow-drip", drip_headers),
        "hanging": Receiver("hanging", hang(5.0)),
        "500": Receiver("500", plain(500)),
        "429-retry-after": Receiver("429-retry-after", plain(429, retry_after=str(ASKED_S))),
        "410": Receiver("410", plain(410)),
    }
    for name in ("good", "302", "late-answer", "large-body", "tls-error", "down"):
        receivers[name] = Receiver(name, None)
    receivers["late-answer"].bad = answering_late(receivers["late-answer"])
    body = receivers["large-body"].bad = Gigabytes(receivers["large-body"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate(folder) / "cert.pem", folder / "key.pem")
    trust = ssl.create_default_context()
    (port,) = services.free_ports(1)
    with ExitStack() as stack:
        canary = stack.enter_context(hook(200))
        receivers["302"].bad = plain(302, location=canary.url)
        urls = {
            name: stack.enter_context(hook(receiver, tls=tls if name == "tls-error" else None)).url
            for name, receiver in receivers.items()
            if name != "down"
        }
        urls["tls-error"] = urls["tls-error"].replace("http:", "https:")
        urls["down"] = f"http://127.0.0.1:{port}/hook"
        settings, wall = settings_for(urls), SystemClock()
        channels = make_channels(settings, wall)
        channels["tls-error"] = WebhookChannel(
            "tls-error", settings.channels["tls-error"], timeout_s=TIMEOUT_S, clock=wall, ssl_context=trust
        )
        worker = DeliveryWorker(Outbox(engine), settings, wall, owner="worker", channels=channels)
        put(engine, [row for name in receivers for row in outbox_rows(name, incidents)])
        worker.start()
        stack.callback(worker.stop)
        ends_s = time.monotonic() + down_s
        good = wait_until(lambda: len(set(receivers["good"].accepted)) == 2 * incidents, 4 * down_s)
        time.sleep(max(0.0, ends_s - time.monotonic()))
        early = sum(n for name in ("down", "tls-error") for n in (len(receivers[name].came),))
        for receiver in receivers.values():
            receiver.healed.set()
        stack.enter_context(hook(receivers["down"], port=port))
        trust.load_verify_locations(folder / "cert.pem")
        settled = wait_until(lambda: not unsettled(engine), 120 + down_s)
        yield "a receiver that works is served while the others misbehave", "yes" if good else "no", good
        for name, receiver in receivers.items():
            if name != "410":
                yield told(engine, receiver, incidents, *details(name, receiver, body, canary, early))
        states, attempts = status(engine, "410")
        gone = states == Counter({"dead": 2 * incidents}) and "410" in Outbox(engine).disabled_channels()
        yield "410", f"channel disabled, {states['dead']} given up and shown, {attempts} attempts", gone
        yield "nothing is left over", "yes" if settled else "no", settled
    engine.dispose()


def details(name: str, receiver: Receiver, body: Gigabytes, canary: Hook, early: int) -> tuple[str, bool]:
    """What is counted of one fault beside the ids, and whether that is as promised."""
    if name == "429-retry-after":
        wait_s = shortest_wait_s(receiver.came)
        return f", asked to wait {ASKED_S} s, shortest wait {wait_s:.2f} s", wait_s >= ASKED_S - 0.05
    if name == "302":
        return f", {len(canary.requests)} requests where it pointed", not canary.requests
    if name == "large-body":
        return f", at most {body.most >> 20} MB of a gigabyte taken", body.most < 64 << 20
    if name in ("down", "tls-error"):
        return f", {early} requests before it worked", not early
    return "", True


def unsettled(engine: Engine) -> bool:
    with engine.connect() as connection:
        return any(row.status in ("pending", "claimed") for row in connection.execute(select(DELIVERIES)))


def work_until_killed(url: str, target: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    engine = connect(url)
    DeliveryWorker(
        Outbox(engine), settings_for({"kill": target}), SystemClock(), owner=str(os.getpid())
    ).start()
    threading.Event().wait()


def killed_between(folder: Path, incidents: int, kills: int, rng: random.Random) -> Iterator[Row]:
    """kill -9 of the sender when the receiver has a message and has not answered, again and again."""
    url = f"sqlite:///{folder / 'killed.db'}"
    engine = connect(url)
    upgrade(engine)
    put(engine, outbox_rows("kill", incidents))
    receiver = Receiver("kill", None)
    fatal, victim = threading.Event(), list[int]()

    def kill_first(handler: Any) -> None:
        name = handler.headers["webhook-id"]
        with receiver.lock:
            receiver.accepted.append(name)
            if fatal.is_set():
                fatal.clear()
                os.kill(victim[-1], 9)
        plain(200)(handler)

    receiver.bad = kill_first
    done, spawn = 0, multiprocessing.get_context("spawn")
    with hook(receiver) as server:
        for _ in range(kills):
            process = spawn.Process(target=work_until_killed, args=(url, server.url), daemon=True)
            process.start()
            assert process.pid is not None
            victim.append(process.pid)
            count, more = len(receiver.accepted), rng.randrange(4)
            wait_until(lambda n=count + more: len(receiver.accepted) >= n, 60)  # type: ignore[misc]
            fatal.set()
            process.join(60)
            fatal.clear()
            done += process.exitcode == -9
            process.kill()
        last = DeliveryWorker(Outbox(engine), settings_for({"kill": server.url}), SystemClock(), owner="last")
        last.start()
        settled = wait_until(lambda: not unsettled(engine), 180)
        last.stop()
    _, count_text, kept = told(engine, receiver, incidents)
    yield f"{done} kills between send and mark", count_text, kept and settled and done == kills
    engine.dispose()


def receiver_faults(folder: Path, *, incidents: int, down_s: float, kills: int, seed: int) -> Iterator[Row]:
    yield from misbehaving(folder, incidents, down_s)
    yield from killed_between(folder, max(incidents, 8 * kills), kills, random.Random(seed))
