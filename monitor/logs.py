"""Logging: to standard error, one line per event, readable on a terminal and JSON elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO, cast

import structlog

QUIET_S = 60.0
MAX_KINDS = 1_000


class _Stderr:
    """Standard error as it is when something is said: loggers are kept for longer than a stream may live."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_STDERR = cast("TextIO", _Stderr())  # all that loggers use of one


def configure(level: Literal["info", "warning"] = "info") -> None:
    """Set the process up once, for libraries too. Both renderers escape control characters in values."""
    terminal = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer(colors=terminal)
        if terminal
        else structlog.processors.JSONRenderer(ensure_ascii=True)
    )
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(_STDERR),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_STDERR)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(OncePerMinute())  # here, as loggers below "kafka" pass its own filters by
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


class OncePerMinute(logging.Filter):
    """Lets the Kafka client say each kind of thing once a minute: one that finds no broker says ten a second.

    The pipeline says by itself that the source is away, and `inferwatch doctor` why.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != "kafka":
            return True
        kind, now_s = (record.name, str(record.msg)[:60]), self._clock()
        if now_s - self._said_s.get(kind, -math.inf) < QUIET_S:
            return False
        if len(self._said_s) >= MAX_KINDS:
            self._said_s.clear()
        self._said_s[kind] = now_s
        return True
