"""Daemons forked from a process that has imported and compiled everything: a start costs a fork, not seconds.

Each of them is a process of its own that runs `inferwatch run` from its first line on; what is shared is what
was read from files before. For runs that kill a hundred of them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

WARM_S = 600.0  # ample, on a machine that compiles for the first time and is busy with other things


class Forked:
    """One of them, with as much of `subprocess.Popen` as the tests use."""

    def __init__(self, pid: int, forks: Forks) -> None:
        self.pid, self._forks = pid, forks

    @property
    def returncode(self) -> int | None:
        return self._forks.codes.get(self.pid)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._forks.changed:
            if not self._forks.changed.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(f"daemon {self.pid}", timeout or 0.0)
        code = self.returncode
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody has said so yet
                os.kill(self.pid, number)


class Forks:
    """The process that they are forked from; when it ends, they do."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.changed = threading.Condition()
        self._begun: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._listener = threading.Thread(target=self._listen, name="forks", daemon=True)
        self._listener.start()

    def start(self, config: Path, log: Path) -> Forked:
        assert self._process.stdin is not None
        with self.changed:
            before = len(self._begun)
            self._process.stdin.write(f"{config}\t{log}\n")
            self._process.stdin.flush()
            assert self.changed.wait_for(lambda: len(self._begun) > before, WARM_S), "nothing was forked"
            return Forked(self._begun[-1], self)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(WARM_S)  # it may be compiling still
        self._listener.join(30)  # the daemons that were forked hold the other end too, until they end
        if not self._listener.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, _, code = line.strip().partition(" ")
            with self.changed:
                if code:
                    self.codes[int(pid)] = int(code)
                else:
                    self._begun.append(int(pid))
                self.changed.notify_all()


def warm() -> None:
    """Import and compile what every daemon needs; no thread may be left running."""
    import kafka  # noqa: F401
    import psycopg  # noqa: F401

    import monitor.commands.work
    import monitor.daemon
    import monitor.sources.kafka
    import monitor.sources.readers  # noqa: F401
    from tests import compiled

    compiled.main()


def run_child(config: str, log: str) -> None:
    """Never returns."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for fd in (1, 2):
            os.dup2(out, fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from monitor.commands import work

        work.run(Path(config))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def serve() -> None:
    """Lines of "config TAB log" in; "pid" and, when it has ended, "pid code" out."""
    warm()
    alive: set[int] = set()
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        if ready:
            asked = os.read(0, 65_536).decode()
            if not asked:
                break
            for line in asked.splitlines():
                pid = os.fork()
                if pid == 0:
                    run_child(*line.split("\t"))
                alive.add(pid)
                os.write(1, b"%d\n" % pid)
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.discard(pid)
                os.write(1, b"%d %d\n" % (pid, os.waitstatus_to_exitcode(status)))
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)


if __name__ == "__main__":
    serve()
