"""Many rows at once, without what SQLAlchemy does per row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Dialect,
    Executable,
    Float,
    Insert,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    column,
    exc,
    func,
    select,
    update,
)
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

Row = tuple[Any, ...]
New = Callable[[str], ColumnElement[Any]]
"""The new value of a column, by its name."""
Assigned = dict[str, ColumnElement[Any]]
ROWS_AT_ONCE = 1_000  # of a statement with arrays: a few megabytes of states
_NEW = "new_{}"


@lru_cache(maxsize=64)
def _compiled(statement: Executable, dialect: Dialect, names: tuple[str, ...]) -> SQLCompiler:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))  # type: ignore[attr-defined]
    assert isinstance(compiled, SQLCompiler)
    return compiled


def execute_many(
    connection: Connection, statement: Executable, columns: Sequence[str], rows: Sequence[Row]
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


def update_many(
    connection: Connection,
    table: Table,
    assigned: Callable[[New], Assigned],
    columns: Sequence[str],
    rows: Sequence[Row],
) -> None:
    """Update rows by their `id`, the last of `columns`; each has values of its own, in the order of these.

    `assigned` (a function of a module: what it gives is kept) says what each column becomes, of the new
    values. SQLite takes a statement per row, PostgreSQL one for many, whose values come as arrays.
    """
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        statement = _by_row(table, assigned, tuple(columns))
        execute_many(connection, statement, [_NEW.format(name) for name in columns], rows)
        return
    sql = _by_array(table, assigned, tuple(columns), connection.dialect)
    _execute_arrays(connection, sql, columns, rows)


@lru_cache(maxsize=64)
def _by_row(table: Table, assigned: Callable[[New], Assigned], columns: tuple[str, ...]) -> Executable:
    new: Assigned = {name: bindparam(_NEW.format(name)) for name in columns}
    return update(table).where(table.c.id == new["id"]).values(assigned(new.__getitem__))


@lru_cache(maxsize=64)
def _by_array(
    table: Table, assigned: Callable[[New], Assigned], columns: tuple[str, ...], dialect: Dialect
) -> str:
    new = _arrays(table, columns)
    statement = update(table).where(table.c.id == new.c.id).values(assigned(new.c.__getitem__))
    return _with_binary(statement, dialect)


def upsert_many(
    connection: Connection, table: Table, statement: Insert, columns: Sequence[str], rows: Sequence[Row]
) -> None:
    """An upsert of rows.upsert, values in the order of `columns`; like update_many. No key may come twice."""
    if connection.dialect.name != "postgresql":
        execute_many(connection, statement, columns, rows)
    elif rows:
        sql = _inserted_by_array(table, statement, tuple(columns), connection.dialect)
        _execute_arrays(connection, sql, columns, rows)


@lru_cache(maxsize=64)
def _inserted_by_array(table: Table, statement: Insert, columns: tuple[str, ...], dialect: Dialect) -> str:
    new = _arrays(table, columns)
    return _with_binary(statement.from_select(list(columns), select(*new.c)), dialect)


def _arrays(table: Table, columns: tuple[str, ...]) -> TableValuedAlias:
    """New values as a table, one array per column."""
    arrays = [bindparam(name, type_=ARRAY(table.c[name].type)) for name in columns]
    typed = [column(name, table.c[name].type) for name in columns]
    return func.unnest(*arrays).table_valued(*typed, name="new").render_derived()


def _with_binary(statement: Executable, dialect: Dialect) -> str:
    """The text of a statement whose parameters go out in binary."""
    compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    return re.sub(r"%\((\w+)\)s", r"%(\1)b", str(compiled))


def _execute_arrays(connection: Connection, sql: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        arrays = map(list, zip(*rows[start : start + ROWS_AT_ONCE], strict=True))
        connection.exec_driver_sql(sql, dict(zip(columns, arrays, strict=True)))


def insert_many(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Insert rows that must be new, values in the order of `columns`: COPY on PostgreSQL, else one by one
    from a single statement. Values are such that the driver takes them as they are."""
    if not rows:
        return
    quote = connection.dialect.identifier_preparer.quote
    into = f"{quote(table.name)} ({', '.join(map(quote, columns))})"
    if connection.dialect.name == "postgresql":
        types = [_copied_as(table.c[name].type) for name in columns]
        _copy(connection, f"COPY {into} FROM STDIN (FORMAT BINARY)", types, rows)
    else:
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({marks})", list(rows))


def _copied_as(column_type: TypeEngine[Any]) -> str:
    """PostgreSQL's name of a type; in binary the bytes of a value depend on it."""
    names = {BigInteger: "int8", Integer: "int4", Float: "float8", Boolean: "bool", String: "text"}
    names |= {LargeBinary: "bytea"}
    return next(name for known, name in names.items() if isinstance(column_type, known))


def _copy(connection: Connection, statement: str, types: Sequence[str], rows: Sequence[Row]) -> None:
    """COPY inside the transaction of `connection`, with errors as SQLAlchemy reports them."""
    from psycopg import Error

    driver: Any = connection.connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)
    except Error as error:
        lost = connection.dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]
        if lost:
            connection.invalidate(error)
        raise exc.DBAPIError.instance(
            statement, None, error, Error, connection_invalidated=lost, dialect=connection.dialect
        ) from error
