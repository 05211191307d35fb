"""Many rows at once, without what SQLAlchemy does per row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Executable, Table, exc
from sqlalchemy.sql.compiler import SQLCompiler

Row = dict[str, Any]


@lru_cache(maxsize=64)
def _compiled(statement: Executable, dialect: Dialect, names: tuple[str, ...]) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))  # type: ignore[attr-defined]
    assert isinstance(compiled, SQLCompiler)
    return compiled


def execute_many(connection: Connection, statement: Executable, rows: Sequence[Row]) -> None:
    """Run a statement once per row; the rows have the same keys and values that the driver takes as they are.

    Reuse the statement object: it is compiled once. Errors are those of `connection.execute`.
    """
    if not rows:
        return
    compiled = _compiled(statement, connection.dialect, tuple(rows[0]))
    parameters: list[Any] = list(rows)
    if compiled.positiontup is not None:
        names = compiled.positiontup
        parameters = [tuple([row[name] for name in names]) for row in rows]
    connection.exec_driver_sql(compiled.string, parameters)


def insert_many(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows that must be new, values in the order of `columns`: COPY on PostgreSQL, else one by one
    from a single statement. Values are such that the driver takes them as they are."""
    if not rows:
        return
    quote = connection.dialect.identifier_preparer.quote
    into = f"{quote(table.name)} ({', '.join(map(quote, columns))})"
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {into} FROM STDIN", rows)
    else:
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({marks})", list(rows))


def _copy(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """COPY inside the transaction of `connection`, with errors as SQLAlchemy reports them."""
    from psycopg import Error

    driver: Any = connection.connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except Error as error:
        lost = connection.dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
        if lost:
            connection.invalidate(error)
        raise exc.DBAPIError.instance(
            statement, None, error, Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error
