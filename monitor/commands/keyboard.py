"""Keys, resizes and stops of a terminal while something is shown on its whole screen."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from collections import deque
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

_SENT = {
    "up": ("k", "\x1b[A", "\x1bOA"),
    "down": ("j", "\x1b[B", "\x1bOB"),
    "page up": ("\x1b[5~",),
    "page down": ("\x1b[6~",),
    "first": ("g", "\x1b[H", "\x1bOH", "\x1b[1~"),
    "last": ("G", "\x1b[F", "\x1bOF", "\x1b[4~"),
    "now": (" ", "r"),
    "end": ("q",),
}
NAMES = {sent: meant for meant, each in _SENT.items() for sent in each}
"""What a terminal sends -> what is meant."""
_PRESSED = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|\x1b|[^\x1b]", re.DOTALL)
_ENDS = (signal.SIGTERM, signal.SIGHUP)


class Keyboard:
    """While entered, single keys are read and not echoed; afterwards the terminal is as it was.

    `wait` is woken by keys, by a change of the window's size and by Ctrl-Z. SIGTERM and SIGHUP raise
    SystemExit where the program stands, Ctrl-C raises KeyboardInterrupt as ever. Without a terminal on
    stdin there are no keys. For the main thread only.
    """

    def __init__(self) -> None:
        self._keys: deque[str] = deque()
        self._before: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._stopped = False

    def __enter__(self) -> Self:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for which, handler in ((signal.SIGWINCH, _nothing), (signal.SIGTSTP, self._stop)):
            self._handlers[which] = signal.signal(which, handler)
        for which in _ENDS:
            self._handlers[which] = signal.signal(which, _end)
        self._single_keys()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._as_before()
        for which, handler in self._handlers.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._woken)
        os.close(self._wake)

    def wait(self, timeout_s: float) -> str | None:
        """The next key by its meaning in NAMES or as it is; "stop" for Ctrl-Z; None when the time has passed
        or the window has another size. A terminal that has gone is "end"."""
        if not self._keys:
            fds = [self._woken] if self._fd is None else [self._woken, self._fd]
            ready, _, _ = select.select(fds, [], [], max(timeout_s, 0.0))
            if self._woken in ready:
                os.read(self._woken, 1_024)
            if self._stopped:
                self._stopped = False
                return "stop"
            if self._fd is not None and self._fd in ready:
                self._keys += self._pressed(self._fd)
        return self._keys.popleft() if self._keys else None

    def _pressed(self, fd: int) -> list[str]:
        try:
            sent = os.read(fd, 1_024).decode("utf-8", "replace")
        except OSError:  # the terminal has gone
            sent = ""
        return [NAMES.get(key, key) for key in _PRESSED.findall(sent)] or ["end"]

    def suspend(self) -> None:
        """Stop this process as Ctrl-Z does; returns when it is continued."""
        self._as_before()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._single_keys()

    def _single_keys(self) -> None:
        if self._fd is not None:
            tty.setcbreak(self._fd, termios.TCSADRAIN)

    def _as_before(self) -> None:
        if self._fd is not None and self._before is not None:
            with suppress(termios.error):  # the terminal has gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True


def _nothing(number: int, frame: FrameType | None) -> None:
    """The signal wakes `Keyboard.wait`, no more."""


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
