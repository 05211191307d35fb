"""The parts of a running Inferwatch, wired in order and closed in the reverse order."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from monitor.claims import Parts
from monitor.clock import Clock, SystemClock
from monitor.config import Settings
from monitor.delivery import DeliveryWorker
from monitor.incidents import make_fold
from monitor.jobs import train_at
from monitor.models import Models, TrainedModels
from monitor.pipeline import Pipeline
from monitor.sources.base import Source
from storage.engine import connect, own_database, upgrade
from storage.facts import Facts
from storage.ledger import Ledger
from storage.models import ModelRegistry
from storage.outbox import Outbox

TAKE_OVER_S = 30.0  # to a dead member's session: from the end of a session to the first commit of its heir


class Runtime:
    """Database, ledger, models and delivery of one process; `pipeline(source)` puts a source in front.

    Raises ConfigError for a database URL that cannot work, InferwatchError when another daemon
    holds the same SQLite file.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            url = self.settings.database.url
            stack.enter_context(own_database(url))
            self.engine = connect(url)
            stack.callback(self.engine.dispose)
            upgrade(self.engine)
            self.registry = ModelRegistry(self.engine)
            self.ledger = Ledger(
                self.engine,
                fold=make_fold(self.settings),
                owner=self.owner,
                revision_horizon_ms=int(self.settings.window.revision_horizon_s * 1000),
                reopen_ms=int(self.settings.detection.reopen_within_s * 1000),
                allowed_lateness_ms=int(self.settings.window.allowed_lateness_s * 1000),
                hold_s=self.settings.source.session_timeout_s + TAKE_OVER_S,
            )
            self.facts = Facts(self.engine)
            self.models = TrainedModels(
                self.settings, self.registry, self.facts, train_at, self.clock.monotonic_s
            )
            stack.callback(self.models.close)
            self.delivery = DeliveryWorker(Outbox(self.engine), self.settings, self.clock, owner=self.owner)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_delivery(self) -> None:
        self.delivery.start()
        self._stack.callback(self.delivery.stop)

    def pipeline(self, source: Source, *, models: Models | None = None) -> Pipeline:
        self._stack.callback(source.close)
        return Pipeline(
            self.settings,
            Parts(source, self.ledger, self.facts, self.clock, models or self.models, self.delivery.wake),
        )
