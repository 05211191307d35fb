"""Many rows at once, without what SQLAlchemy does per row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Executable, Table, exc
from sqlalchemy.sql.compiler import SQLCompiler


@lru_cache(maxsize=64)
def _compiled(statement: Executable, dialect: Dialect, names: tuple[str, ...]) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))  # type: ignore[attr-defined]
    assert isinstance(compiled, SQLCompiler)
    return compiled


def execute_many(
    connection: Connection, statement: Executable, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Run a statement once per row, values in the order of `columns` and such that the driver takes them as
    they are.

    Reuse the statement object: it is compiled once. Errors are those of `connection.execute`.
    """
    if not rows:
        return
    compiled = _compiled(statement, connection.dialect, tuple(columns))
    parameters: list[Any] = list(rows)
    if compiled.positiontup is None:
        parameters = [dict(zip(columns, row, strict=True)) for row in rows]
    elif compiled.positiontup != list(columns):
        in_order = itemgetter(*map(columns.index, compiled.positiontup))
        parameters = list(map(in_order, rows))
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
