"""SELECT statements as text with named values: what every reader can run, with SQLAlchemy or without.

Building and compiling statements with SQLAlchemy costs a short command most of its time before the first row
is asked for, so those of storage.queries are text. They run on an engine of a daemon, inside its
transactions, or on a `Plain` database, which is the driver alone.
"""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Row = dict[str, Any]
Key = tuple[str, bool]
"""A column of the order, and whether it descends."""
BUSY_S, CONNECT_TIMEOUT_S = 15.0, 5
_NAMED = re.compile(r"(?<!:):([a-z]\w*)")
_WILD = re.compile(r"[/%_]")


@dataclass(frozen=True, slots=True)
class Select:
    """`SELECT columns FROM source`, narrowed by its methods, each of which returns a new one.

    Columns, sources, conditions and orders are written in this package; whatever comes from outside is
    one of `values`.
    """

    columns: str
    source: str
    conditions: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    order: str = ""
    group: str = ""

    def where(self, condition: str, *values: Any) -> Select:
        """`condition` with a `?` for each of `values`."""
        parts = condition.split("?")
        assert len(parts) == len(values) + 1
        bound = dict(self.values)
        text = parts[0]
        for value, part in zip(values, parts[1:], strict=True):
            name = f"v{len(bound)}"
            bound[name] = value
            text += f":{name}{part}"
        return dataclasses.replace(self, conditions=(*self.conditions, text), values=bound)

    def equal(self, table: str, **columns: Any) -> Select:
        """Each column of the table equals its value; None asks for nothing."""
        chosen = self
        for name, value in columns.items():
            if value is not None:
                chosen = chosen.where(f"{table}.{name} = ?", value)
        return chosen

    def within(self, column: str, values: Sequence[Any]) -> Select:
        """The column is one of `values`."""
        if not values:
            return self.where("1 = 0")
        return self.where(f"{column} IN ({', '.join('?' * len(values))})", *values)

    def from_to(self, column: str, since: int | None, until: int | None = None) -> Select:
        """The column lies in [since, until)."""
        chosen = self if since is None else self.where(f"{column} >= ?", since)
        return chosen if until is None else chosen.where(f"{column} < ?", until)

    def exists(self, other: Select) -> Select:
        """There is a row of `other`, whose conditions may name columns of this one."""
        text = " AND ".join(other.conditions)
        condition = _NAMED.sub("?", f"EXISTS (SELECT 1 FROM {other.source} WHERE {text})")
        return self.where(condition, *(other.values[name] for name in _NAMED.findall(text)))

    def starts_with(self, column: str, text: str) -> Select:
        return self.where(f"{column} LIKE ? ESCAPE '/'", _WILD.sub(r"/\g<0>", text) + "%")

    def contains(self, column: str, text: str) -> Select:
        """The column contains the text, whatever its case (on SQLite: of ASCII letters)."""
        return self.where(f"lower({column}) LIKE lower(?) ESCAPE '/'", "%" + _WILD.sub(r"/\g<0>", text) + "%")

    def ordered(self, keys: Sequence[Key], after: Sequence[Any] | None = None) -> Select:
        """In the order of `keys`, behind the row whose keys are `after` (ms for times).

        The first key is bounded once more by itself: with that an index finds the place at once.
        """
        order = ", ".join(f"{column} DESC" if down else column for column, down in keys)
        chosen = dataclasses.replace(self, order=order)
        if after is None:
            return chosen
        assert len(after) == len(keys)
        alternatives: list[str] = []
        values: list[Any] = []
        for i, (column, down) in enumerate(keys):
            equal = [f"{earlier} = ?" for earlier, _ in keys[:i]]
            alternatives.append(" AND ".join([*equal, f"{column} {'<' if down else '>'} ?"]))
            values += after[: i + 1]
        first, down = keys[0]
        chosen = chosen.where(f"{first} {'<=' if down else '>='} ?", after[0])
        return chosen.where("(" + " OR ".join(alternatives) + ")", *values)

    def limited(self, limit: int, offset: int = 0) -> tuple[str, Mapping[str, Any]]:
        """The text and its values; at most `limit` rows, behind `offset` others."""
        text = f"SELECT {self.columns} FROM {self.source}"
        if self.conditions:
            text += " WHERE " + " AND ".join(self.conditions)
        if self.group:
            text += f" GROUP BY {self.group}"
        if self.order:
            text += f" ORDER BY {self.order}"
        text += " LIMIT :most" + (" OFFSET :behind" if offset else "")
        return text, {**self.values, "most": limit, **({"behind": offset} if offset else {})}


class Plain:
    """A database that is only read, through its driver alone. Not for several threads."""

    def __init__(self, connection: Any, dialect: str) -> None:
        self._connection = connection
        self.dialect = dialect  # "sqlite" | "postgresql"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def fetch(self, text: str, values: Mapping[str, Any]) -> list[Row]:
        """Every row as a dict; the driver's own errors pass through."""
        if self.dialect == "postgresql":
            text = _NAMED.sub(r"%(\1)s", text.replace("%", "%%"))
        cursor = self._connection.execute(text, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def version(self) -> str | None:
        """The schema version; None when the database is empty."""
        known = (
            "SELECT to_regclass('alembic_version') IS NOT NULL AS there"
            if self.dialect == "postgresql"
            else "SELECT count(*) > 0 AS there FROM sqlite_master WHERE name = 'alembic_version'"
        )
        if not self.fetch(known, {})[0]["there"]:
            return None
        found = self.fetch("SELECT version_num FROM alembic_version", {})
        return str(found[0]["version_num"]) if found else None


def plain(url: str) -> Plain | None:
    """The database of `sqlite:///FILE` or `postgresql://...` through its driver; None for any other form of
    URL, which storage.engine.connect understands or refuses with a reason.

    A SQLite file must exist. Errors of the driver pass through.
    """
    kind, separator, rest = url.partition("://")
    if not separator or "?" in rest:
        return None
    if kind in ("sqlite", "sqlite+pysqlite"):
        if not rest.startswith("/") or len(rest) < 2 or rest == "/:memory:":
            return None
        connection = sqlite3.connect(rest[1:], timeout=BUSY_S, isolation_level=None)
        return Plain(connection, "sqlite")
    if kind in ("postgresql", "postgresql+psycopg", "postgres"):
        import psycopg

        opened = psycopg.connect(
            f"postgresql://{rest}",
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="inferwatch",
        )
        return Plain(opened, "postgresql")
    return None


def fetch(source: Engine | Connection | Plain, text: str, values: Mapping[str, Any]) -> list[Row]:
    """Rows of a statement as they are stored."""
    if isinstance(source, Plain):
        return source.fetch(text, values)
    from sqlalchemy import Connection
    from sqlalchemy import text as statement

    if isinstance(source, Connection):
        return [dict(row) for row in source.execute(statement(text), dict(values)).mappings()]
    from storage.engine import reading

    with reading(source) as connection:
        return fetch(connection, text, values)


def dialect_of(source: Engine | Connection | Plain) -> str:
    """ "sqlite" or "postgresql"."""
    return source.dialect if isinstance(source, Plain) else source.dialect.name


def columns_of(table: str, names: Iterable[str]) -> str:
    """`table.a, table.b`."""
    return ", ".join(f"{table}.{name}" for name in names)
