"""`inferwatch top` as a person has it: on the whole of a terminal, live, with keys."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from monitor.config import Settings
from monitor.incidents import make_fold
from monitor.people import people
from storage import queries
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.types import AlertTransition
from tests.storage_kit import MINUTE_MS, make_alert, make_commit, make_series, make_windows
from tests.terminal_screen import Terminal

SERIES = [f"model-{n:02}/chat" for n in range(30)]
LONG = "a-model-with-a-name-that-does-not-end-" * 8 + "/chat"


class Log:
    """A database that grows as a daemon lets it grow."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = connect(url)
        upgrade(self.engine)
        self.ledger = Ledger(
            self.engine,
            fold=make_fold(Settings()),
            owner="test",
            revision_horizon_ms=900_000,
            reopen_ms=1_800_000,
        )
        self.claim = self.ledger.claim("logs", 0, now_ms=1)
        self.offset: int | None = None
        self.minute = 0

    def minutes(self, names: list[str], *steps: AlertTransition, after: int = 2) -> None:
        """Windows of these series, two more minutes of event time, and what became of their alerts."""
        new = (self.offset or 0) + after
        self.ledger.commit(
            make_commit(
                self.claim,
                self.offset,
                new,
                windows=[make_windows(self.minute * MINUTE_MS, names)],
                series=[make_series(name) for name in names],
                transitions=list(steps),
            )
        )
        self.offset, self.minute = new, self.minute + 1

    def fires(self, name: str, severity: str = "major") -> AlertTransition:
        start_ms = self.minute * MINUTE_MS
        return AlertTransition(start_ms + MINUTE_MS, "fired", make_alert(name, start_ms, severity=severity))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(f"sqlite:///{tmp_path / 'top.db'}")
    log.minutes([*SERIES, LONG])
    yield log
    log.engine.dispose()


def top(log: Log, *arguments: str, columns: int = 120, lines: int = 30) -> Terminal:
    return Terminal("top", "--every", "0.3", *arguments, "--database", log.url, columns=columns, lines=lines)


def shown_models(screen: str) -> list[int]:
    return [int(n) for n in re.findall(r"High p99 latency on model-(\d+)", screen)]


def above(screen: str) -> int:
    """How many incidents stand above those that are shown."""
    told = re.search(r"(\d+) above", screen)
    return int(told[1]) if told else 0


def test_what_is_broken_appears_and_goes_while_one_looks(log: Log) -> None:
    with top(log) as terminal:
        calm = terminal.until(lambda screen: "nothing is broken" in screen)
        assert terminal.full_screen
        assert "31 series, 31 windows" in calm and "notifications: 0 delivered, 0 waiting" in calm
        log.minutes(SERIES[:1], log.fires(SERIES[0], "critical"))
        screen = terminal.until(lambda screen: "High p99 latency on model-00/chat" in screen)
        row = next(line for line in screen.splitlines() if "model-00/chat" in line)
        assert re.match(r"critical +open +1970-01-01T00:01:00Z +\d+m +1 +[0-9a-f]{8} +High p99", row)
        assert "nothing is broken" not in screen and "event time 1970-01-01T00:04:00Z" in screen
        (incident,) = queries.incidents(log.engine)
        acting = people(log.engine, Settings())
        acting.acknowledge(incident["incident_id"], by="ada", now_ms=5 * MINUTE_MS)
        terminal.until(lambda screen: "acknowledged" in screen)
        acting.resolve(incident["incident_id"], by="ada", now_ms=6 * MINUTE_MS)
        terminal.until(lambda screen: "nothing is broken" in screen)


def test_a_notification_that_was_given_up_stands_first(log: Log) -> None:
    row = "('d', 'i', 1, 'incident.opened', 'oncall', '{}', 'dead', 0, 9, 1)"
    columns = "delivery_id, incident_id, sequence, event, channel, payload, status, due_at_ms, attempts, "
    with log.engine.begin() as connection:
        connection.execute(text(f"INSERT INTO deliveries ({columns} created_at_ms) VALUES {row}"))
    with top(log, columns=40) as terminal:
        screen = terminal.until(lambda screen: "q ends" in screen)
        assert "notifications: 1 given up" in screen


def test_q_ends_it_and_leaves_the_terminal_as_it_was(log: Log) -> None:
    with top(log) as terminal:
        terminal.until(lambda screen: "q ends" in screen)
        assert not terminal.as_before
        terminal.press("xq")
        assert terminal.ended() == 0
        assert terminal.as_before and terminal.text.strip() == "", "nothing of it stays, no key was echoed"


@pytest.mark.parametrize(
    ("key", "number", "code"),
    [("\x03", None, 0), ("", signal.SIGINT, 0), ("", signal.SIGTERM, 143), ("", signal.SIGHUP, 129)],
    ids=["ctrl-c", "interrupt", "terminate", "hang-up"],
)
def test_other_ends_leave_the_terminal_as_it_was_too(
    log: Log, key: str, number: signal.Signals | None, code: int
) -> None:
    with top(log) as terminal:
        terminal.until(lambda screen: "q ends" in screen)
        terminal.press(key)
        if number is not None:
            terminal.signal(number)
        assert terminal.ended() == code
        assert terminal.as_before and terminal.text.strip() == ""


def test_it_ends_with_its_window(log: Log) -> None:
    with top(log) as terminal:
        terminal.until(lambda screen: "q ends" in screen)
        terminal.hang_up()
        assert terminal.process.wait(timeout=20) != 0


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(log: Log) -> None:
    with top(log) as terminal:
        terminal.until(lambda screen: "q ends" in screen)
        terminal.press("\x1a")
        terminal.stopped()
        assert terminal.as_before
        log.minutes(SERIES[:1], log.fires(SERIES[0]))
        terminal.signal(signal.SIGCONT)
        terminal.until(lambda screen: "model-00/chat" in screen and "major" in screen)
        assert terminal.full_screen
        terminal.press("q")
        assert terminal.ended() == 0 and terminal.as_before


def test_space_looks_at_once(log: Log) -> None:
    with Terminal("top", "--every", "3600", "--database", log.url) as terminal:
        terminal.until(lambda screen: "nothing is broken" in screen)
        log.minutes(SERIES[:1], log.fires(SERIES[0]))
        terminal.press(" ")
        terminal.until(lambda screen: "High p99 latency on model-00/chat" in screen)


def test_more_than_fits_is_counted_and_scrolled_to(log: Log) -> None:
    log.minutes(SERIES, *(log.fires(name) for name in SERIES))
    with top(log, lines=24) as terminal:
        screen = terminal.until(lambda screen: "more" in screen)
        before = shown_models(screen)
        hidden = int(re.search(r"^ +(\d+) more$", screen, re.MULTILINE)[1])  # type: ignore[index]
        assert len(before) + hidden == 30 and len(before) >= 5
        assert "newest window" in screen and "q ends" in screen, "some series and the keys stay in sight"
        terminal.press("j")
        screen = terminal.until(lambda screen: "1 above" in screen)
        after = shown_models(screen)
        assert after[:-1] == before[1:] and f"{hidden - 1} more" in screen
        terminal.press("\x1b[A")
        terminal.until(lambda screen: "above" not in screen)
        terminal.press("G")
        screen = terminal.until(lambda screen: f"{hidden} above" in screen)
        assert "more" not in screen and len(shown_models(screen)) == len(before), "the last page is full"
        terminal.press("g")
        screen = terminal.until(lambda screen: "above" not in screen)
        seen = set(shown_models(screen))
        while "more" in screen:
            passed = above(screen)
            terminal.press("\x1b[6~")
            screen = terminal.until(lambda screen, passed=passed: above(screen) > passed)  # type: ignore[misc]
            seen |= set(shown_models(screen))
        assert seen == set(range(30)), "every incident was to be seen"


@pytest.mark.parametrize(("columns", "lines"), [(40, 15), (60, 20), (80, 24), (200, 50), (25, 6)])
def test_it_follows_the_size_of_the_window(log: Log, columns: int, lines: int) -> None:
    log.minutes([SERIES[0], LONG], log.fires(SERIES[0], "critical"), log.fires(LONG))
    with top(log, "--every", "60") as terminal:
        terminal.until(lambda screen: "q ends" in screen and "model-00" in screen)
        terminal.resize(columns, lines)
        screen = terminal.until(
            lambda screen: screen.splitlines()[-1].startswith("q ends") and "High" in screen
        )
        shown = screen.splitlines()
        names = 0 if lines == 6 else 1
        assert (screen.count("severity"), screen.count("q ends")) == (names, 1), "nothing of before stays"
        rows = [line for line in shown if line.startswith(("critical", "major"))]
        assert rows[0].startswith("critical") and "High" in rows[0]
        if lines > 6:
            assert len(rows) == 2 and rows[1].endswith("…")
            columns_shown = ("open" in rows[0], "1970-01-01T00:01:00Z" in rows[0])
            assert columns_shown == (columns >= 80, columns >= 110)
        assert sum("0.250" in line for line in shown) == {6: 0, 15: 3, 20: 8}.get(lines, 10)


def test_a_database_that_goes_away_is_told_and_looked_at_again(log: Log, tmp_path: Path) -> None:
    with top(log) as terminal:
        terminal.until(lambda screen: "nothing is broken" in screen)
        log.engine.dispose()
        (tmp_path / "top.db").rename(tmp_path / "away.db")
        screen = terminal.until(lambda screen: "cannot look" in screen)
        assert "nothing is broken" in screen, "what was seen last stays"
        (tmp_path / "away.db").rename(tmp_path / "top.db")
        log.minutes(SERIES[:1], log.fires(SERIES[0]))
        screen = terminal.until(lambda screen: "model-00/chat" in screen and "q ends" in screen)
        assert "cannot look" not in screen


def test_a_database_that_is_not_there_is_one_line_on_the_usual_screen(tmp_path: Path) -> None:
    with Terminal("top", "--database", f"sqlite:///{tmp_path / 'none.db'}") as terminal:
        assert terminal.ended() == 1
        assert "no database at" in terminal.text and terminal.as_before


def test_names_from_the_log_cannot_command_the_screen(log: Log) -> None:
    with log.engine.begin() as connection:
        connection.execute(
            text("UPDATE series SET name = :name, last_score = 0.9 WHERE name = :old"),
            {
                "name": "evil\x1b[2J\x1b[31m\x9b2J/a",
                "old": SERIES[3],
            },
        )
    with top(log) as terminal:
        screen = terminal.until(lambda screen: "evil" in screen)
        assert r"evil\x1b[2J\x1b[31m\x9b2J/a" in screen and "nothing is broken" in screen


def test_a_terminal_that_can_move_no_cursor_is_told_once(log: Log) -> None:
    with Terminal("top", "--database", log.url, TERM="dumb") as terminal:
        assert terminal.ended() == 0
        assert "nothing is broken" in terminal.text


@pytest.mark.postgres
def test_it_is_the_same_on_postgresql(postgres_database: str) -> None:
    log = Log(postgres_database)
    log.minutes(SERIES[:2])
    with top(log) as terminal:
        terminal.until(lambda screen: "nothing is broken" in screen)
        log.minutes(SERIES[:1], log.fires(SERIES[0]))
        terminal.until(lambda screen: "High p99 latency on model-00/chat" in screen)
        terminal.press("q")
        assert terminal.ended() == 0 and terminal.as_before
    log.engine.dispose()
