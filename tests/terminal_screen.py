"""A command on a pseudo-terminal of its own, with an emulator that knows what is on the screen."""

from __future__ import annotations

import copy
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pyte

ALTERNATE = 1049
ON_THE_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
READ_S = 0.05


class Screen(pyte.Screen):
    """The emulator, with the second screen that full-screen programs switch to."""

    kept: dict[str, Any] | None = None

    def set_mode(self, *modes: int, **options: Any) -> None:
        super().set_mode(*modes, **options)
        if ALTERNATE in modes and options.get("private"):
            self.kept = {"buffer": copy.deepcopy(self.buffer), "cursor": copy.copy(self.cursor)}
            self.erase_in_display(2)
            self.cursor_position()

    def reset_mode(self, *modes: int, **options: Any) -> None:
        super().reset_mode(*modes, **options)
        if ALTERNATE in modes and options.get("private") and self.kept is not None:
            hidden = self.cursor.hidden
            self.buffer, self.cursor = self.kept["buffer"], self.kept["cursor"]
            self.cursor.hidden = hidden
            self.kept = None


class Terminal:
    """`inferwatch ARGUMENTS` in a terminal of `columns` times `lines`, killed if it still runs at the end."""

    def __init__(self, *arguments: str, columns: int = 120, lines: int = 30, **variables: str) -> None:
        self.main, self.follower = pty.openpty()  # ours is held too: settings can be read when all has ended
        self._size(columns, lines)
        self.before = termios.tcgetattr(self.follower)
        self.screen = Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        root = str(Path(__file__).parent.parent)
        unset = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_THE_TERMINAL, "-m", "monitor.cli", *arguments],
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            env={**environment, "PYTHONPATH": root, "TERM": "xterm-256color", **variables},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.main >= 0:
            os.close(self.main)
        os.close(self.follower)

    def hang_up(self) -> None:
        """Close the window: the terminal is gone."""
        os.close(self.main)
        self.main = -1

    def press(self, keys: str) -> None:
        os.write(self.main, keys.encode())

    def resize(self, columns: int, lines: int, within_s: float = 20.0) -> None:
        """Give the window another size; returns when the command has begun to draw anew."""
        self.screen.resize(lines, columns)
        self._size(columns, lines)
        deadline = time.monotonic() + within_s
        while not self._read():
            assert time.monotonic() < deadline, f"nothing is drawn:\n{self.text}"

    def until(self, told: Callable[[str], bool], within_s: float = 20.0) -> str:
        """The screen once `told` holds of it."""
        deadline = time.monotonic() + within_s
        while not told(self.text) or self._read():  # and nothing more comes just now
            assert time.monotonic() < deadline, f"the screen stays:\n{self.text}"
            self._read()
        return self.text

    def ended(self, within_s: float = 20.0) -> int:
        """The exit code; everything it said is on the screen by then."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
            self._read()
        while self._read():
            pass
        return self.process.returncode

    def stopped(self, within_s: float = 20.0) -> None:
        """Wait until the process is stopped as by Ctrl-Z."""
        deadline = time.monotonic() + within_s
        while True:
            pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                break
            assert not pid and time.monotonic() < deadline, "it does not stop"
            self._read()
        while self._read():
            pass

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def text(self) -> str:
        """The lines of the screen without the blanks at their ends."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def full_screen(self) -> bool:
        return self.screen.kept is not None

    @property
    def as_before(self) -> bool:
        """The first screen, a cursor, and the settings of the terminal that there were."""
        same = termios.tcgetattr(self.follower) == self.before
        return same and not self.full_screen and not self.screen.cursor.hidden

    def _read(self) -> bool:
        if not select.select([self.main], [], [], READ_S)[0]:
            return False
        self._stream.feed(os.read(self.main, 65_536))
        return True

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
