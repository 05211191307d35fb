"""Sends what lies in the outbox: claim -> post -> finish, at least once, under a stable id.

One dispatcher thread claims; each channel has its own few sender threads and a bounded queue, so that a
slow receiver holds up nobody else. What an attempt means is decided by `decide_attempt`, a pure function.
A process that dies between post and finish leaves a lease; when it ends, the same notification is sent
again under the same id.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Protocol

import structlog

from monitor import metrics
from monitor.channels.base import Channel, Outcome
from monitor.channels.registry import RESENT_TYPES, make_channel
from monitor.clock import Clock
from monitor.config import DeliverySettings, Settings
from storage.types import ClaimedDelivery

log = structlog.get_logger()

SENDERS_PER_CHANNEL = 4
QUEUE_PER_CHANNEL = 8
CLAIM_LIMIT = 16
POLL_S = 5.0
ERROR_WAIT_S = 2.0
ROUND_S = 0.05  # between two looks at the outbox at least: what ends meanwhile is looked after at once
MAX_RETRY_AFTER_S = 3_600.0


class OutboxPort(Protocol):
    """What the worker needs of storage.outbox.Outbox."""

    def claim(
        self, owner: str, now_ms: int, limit: int, lease_ms: int, *, exclude: Collection[str] = ()
    ) -> list[ClaimedDelivery]: ...
    def claim_resends(
        self, owner: str, now_ms: int, limit: int, lease_ms: int, *, exclude: Collection[str] = ()
    ) -> list[ClaimedDelivery]: ...
    def delivered(
        self, delivery_id: str, owner: str, now_ms: int, *, resend_at_ms: int | None = None
    ) -> bool: ...
    def resent(self, delivery_id: str, owner: str, *, resend_at_ms: int, error: str | None) -> bool: ...
    def failed(self, delivery_id: str, owner: str, *, retry_at_ms: int, error: str) -> bool: ...
    def dead(self, delivery_id: str, owner: str, now_ms: int, error: str) -> bool: ...
    def disable_channel(self, channel: str, now_ms: int, reason: str) -> int: ...
    def next_due_ms(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Delivered:
    reason: str = "accepted"


@dataclass(frozen=True, slots=True)
class RetryAt:
    at_ms: int
    reason: str  # "redirect", "server_error", "client_error", "retry_after" or the outcome's error


@dataclass(frozen=True, slots=True)
class GiveUp:
    reason: str  # "too_old"


@dataclass(frozen=True, slots=True)
class DisableChannel:
    reason: str  # "gone"


@dataclass(frozen=True, slots=True)
class ResendAt:
    """A notification that had arrived was sent again; it is sent once more at `at_ms` whatever came of it."""

    at_ms: int
    reason: str  # "resent", or why it did not arrive


Decision = Delivered | RetryAt | GiveUp | DisableChannel | ResendAt


def decide_attempt(
    outcome: Outcome, delivery: ClaimedDelivery, now_ms: int, settings: DeliverySettings
) -> Decision:
    """What one attempt means. Pure; the jitter comes from the delivery's id and the number of attempts.

    2xx is delivered, 410 disables the channel, everything else is tried again with exponential backoff,
    or when a `retry-after` of 429 or 503 asks for it (at most an hour), until the notification is older
    than `max_age_h`, counted from its first attempt.
    """
    status = outcome.status
    if outcome.arrived:
        return Delivered()
    if status == 410:
        return DisableChannel("gone")
    delay_s, reason = backoff_s(delivery.delivery_id, delivery.attempts, settings), outcome.error
    if status is not None:
        kinds = {3: "redirect", 4: "client_error", 5: "server_error"}
        reason = kinds.get(status // 100, "odd_status")
        asked_s = retry_after_s(outcome.retry_after, now_ms) if status in (429, 503) else None
        if asked_s is not None:
            delay_s, reason = max(asked_s, settings.backoff_initial_s), "retry_after"
    elif reason == "stopped":
        delay_s = 0.0
    first_ms = delivery.first_attempt_at_ms if delivery.first_attempt_at_ms is not None else now_ms
    if now_ms + delay_s * 1000 - first_ms > settings.max_age_h * 3_600_000:
        return GiveUp("too_old")
    return RetryAt(now_ms + int(delay_s * 1000), reason)


def decide_resend(outcome: Outcome, now_ms: int, resend_s: float) -> ResendAt:
    """What sending again something that had arrived means: a failure waits for the next turn. Pure."""
    reason = "resent" if outcome.arrived else outcome.error or "not_resent"
    return ResendAt(now_ms if reason == "stopped" else now_ms + int(resend_s * 1000), reason)


def backoff_s(delivery_id: str, attempts: int, settings: DeliverySettings) -> float:
    """Seconds before the next attempt: doubles from `backoff_initial_s`, between 75% and 125% of it."""
    plain = min(settings.backoff_initial_s * 2.0 ** min(attempts, 40), settings.backoff_max_s)
    digest = hashlib.sha256(f"{delivery_id} {attempts}".encode()).digest()
    return min(plain * (0.75 + digest[0] / 510), settings.backoff_max_s)


def retry_after_s(header: str | None, now_ms: int) -> float | None:
    """Seconds that a `retry-after` header asks for (RFC 9110: seconds or an HTTP date), 0 to one hour."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:9]), MAX_RETRY_AFTER_S))
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(at_s - now_ms / 1000, 0.0), MAX_RETRY_AFTER_S)


def make_channels(settings: Settings, clock: Clock) -> dict[str, Channel]:
    """The configured channels by name. Raises ConfigError for a wrong address or secret."""
    delivery = settings.delivery
    return {
        name: make_channel(
            name,
            channel,
            timeout_s=delivery.timeout_s,
            clock=clock,
            dashboard_url=delivery.dashboard_url or "",
        )
        for name, channel in settings.channels.items()
    }


class DeliveryWorker:
    """Delivers until `stop`. `wake` says that new rows were committed; it never blocks.

    Raises ConfigError for a wrong channel. Nothing that a receiver or the database does ends the worker.
    """

    def __init__(
        self,
        outbox: OutboxPort,
        settings: Settings,
        clock: Clock,
        *,
        owner: str,
        channels: dict[str, Channel] | None = None,
    ) -> None:
        self._outbox = outbox
        self._settings = settings.delivery
        self._clock = clock
        self._owner = owner
        self._channels = make_channels(settings, clock) if channels is None else channels
        self._resend_s = {
            name: channel.resend_s
            for name, channel in settings.channels.items()
            if channel.type in RESENT_TYPES
        }
        waves = (CLAIM_LIMIT + QUEUE_PER_CHANNEL) / SENDERS_PER_CHANNEL + 2
        self._lease_ms = int((waves * self._settings.timeout_s + 10) * 1000)
        self._queues: dict[str, queue.SimpleQueue[ClaimedDelivery | None]] = {}
        self._busy: Counter[str] = Counter()  # queued or on their way, per channel
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._thread("delivery", self._dispatch)

    def wake(self) -> None:
        self._woken.set()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Break off what is on its way and end; what was not finished is sent again later."""
        self._stopping.set()
        self._woken.set()
        for channel in self._channels.values():
            channel.close()
        with self._lock:
            for waiting in self._queues.values():
                for _ in range(SENDERS_PER_CHANNEL):
                    waiting.put(None)
        deadline_s = self._clock.monotonic_s() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, min(timeout_s, deadline_s - self._clock.monotonic_s())))

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is due and nothing is on its way; False when the time was not enough.

        Notifications that wait for a later attempt are not waited for.
        """
        for _ in range(max(1, int(timeout_s / 0.05))):
            self.wake()
            due_ms = self._outbox.next_due_ms()
            if not self._any_busy() and (due_ms is None or due_ms > self._clock.now_ms()):
                return True
            if self._stopping.wait(0.05):
                break
        return False

    def _any_busy(self) -> bool:
        with self._lock:
            return any(self._busy.values())

    # -------------------------------------------------------------- dispatcher

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                wait_s = 0.0 if self._claim_once() else self._wait_s()
            except Exception as error:  # the database is away: wait, say so, go on
                log.warning("outbox_unavailable", error=str(error).splitlines()[0][:300])
                self._stopping.wait(ERROR_WAIT_S)
                continue
            if wait_s > 0:
                self._woken.wait(wait_s)
                self._stopping.wait(ROUND_S)

    def _claim_once(self) -> bool:
        """Claim for the channels that have room; True when there may be more."""
        with self._lock:
            full = [name for name, busy in self._busy.items() if busy >= QUEUE_PER_CHANNEL]
        now_ms = self._clock.now_ms()
        claimed = self._outbox.claim(self._owner, now_ms, CLAIM_LIMIT, self._lease_ms, exclude=full)
        if self._resend_s:
            claimed += self._outbox.claim_resends(
                self._owner, now_ms, CLAIM_LIMIT, self._lease_ms, exclude=full
            )
        for delivery in claimed:
            if delivery.channel in self._channels:
                self._hand_over(delivery)
            else:
                self._finish(delivery, GiveUp("no_such_channel"), Outcome(error="no_such_channel"))
        return bool(claimed)

    def _wait_s(self) -> float:
        """How long to sleep: until the next row is due; a full channel wakes us when it has room."""
        due_ms = self._outbox.next_due_ms()
        if due_ms is None:
            return POLL_S
        wait_s = (due_ms - self._clock.now_ms()) / 1000
        return min(max(wait_s, 0.02), POLL_S) if not self._any_busy() else min(max(wait_s, 0.2), POLL_S)

    def _hand_over(self, delivery: ClaimedDelivery) -> None:
        name = delivery.channel
        with self._lock:
            self._busy[name] += 1
            if self._stopping.is_set():
                return
            fresh = name not in self._queues
            waiting = self._queues.setdefault(name, queue.SimpleQueue())
            waiting.put(delivery)
        if fresh:
            for number in range(SENDERS_PER_CHANNEL):
                self._thread(f"delivery-{name}-{number}", lambda: self._send_all(name, waiting))

    # ------------------------------------------------------------------ senders

    def _send_all(self, name: str, waiting: queue.SimpleQueue[ClaimedDelivery | None]) -> None:
        while (delivery := waiting.get()) is not None:
            try:
                self._attempt(delivery)
            finally:
                with self._lock:
                    self._busy[name] -= 1
                self._woken.set()

    def _attempt(self, delivery: ClaimedDelivery) -> None:
        with metrics.DELIVERY_SECONDS.time():
            try:
                outcome = self._channels[delivery.channel].send(delivery)
            except Exception as error:  # a fault of ours must not end the thread
                log.exception("channel_failed", channel=delivery.channel)
                outcome = Outcome(error="channel_failed", detail=type(error).__name__)
        now_ms = self._clock.now_ms()
        if delivery.delivered_at_ms is not None:
            resend_s = self._resend_s.get(delivery.channel, MAX_RETRY_AFTER_S)
            self._finish(delivery, decide_resend(outcome, now_ms, resend_s), outcome)
        else:
            self._finish(delivery, decide_attempt(outcome, delivery, now_ms, self._settings), outcome)

    def _finish(self, delivery: ClaimedDelivery, decision: Decision, outcome: Outcome) -> None:
        """Write the decision down; where that fails, the lease ends and the notification is sent again."""
        said = f"HTTP {outcome.status}" if outcome.status is not None else outcome.detail
        error = f"{decision.reason}: {said}" if said else decision.reason
        facts = {
            "delivery_id": delivery.delivery_id,
            "channel": delivery.channel,
            "event_type": delivery.event,
        }
        now_ms, delivery_id = self._clock.now_ms(), delivery.delivery_id
        try:
            if isinstance(decision, Delivered):
                self._outbox.delivered(
                    delivery_id, self._owner, now_ms, resend_at_ms=self._resend_at_ms(delivery, now_ms)
                )
                log.info("delivered", **facts)
            elif isinstance(decision, ResendAt):
                problem = None if decision.reason == "resent" else error
                self._outbox.resent(delivery_id, self._owner, resend_at_ms=decision.at_ms, error=problem)
                log.log(
                    logging.DEBUG if problem is None else logging.WARNING, "resent", error=problem, **facts
                )
            elif isinstance(decision, RetryAt):
                self._outbox.failed(delivery_id, self._owner, retry_at_ms=decision.at_ms, error=error)
                log.warning("delivery_failed", error=error, **facts)
            else:
                self._outbox.dead(delivery_id, self._owner, now_ms, error)
                if isinstance(decision, DisableChannel):
                    self._outbox.disable_channel(delivery.channel, now_ms, error)
                log.error("delivery_given_up", error=error, **facts)
        except Exception as failure:
            log.warning("delivery_not_recorded", error=str(failure).splitlines()[0][:300], **facts)
        metrics.DELIVERIES.labels(_METRIC[type(decision)]).inc()

    def _resend_at_ms(self, delivery: ClaimedDelivery, now_ms: int) -> int | None:
        """When a delivered notification is sent again: where the receiver forgets and trouble goes on."""
        resend_s = self._resend_s.get(delivery.channel)
        goes_on = delivery.event.startswith("incident.") and delivery.event != "incident.resolved"
        return now_ms + int(resend_s * 1000) if resend_s is not None and goes_on else None

    def _thread(self, name: str, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


_METRIC: dict[type, str] = {
    Delivered: "delivered",
    RetryAt: "failed",
    GiveUp: "dead",
    DisableChannel: "dead",
    ResendAt: "resent",
}
