"""`inferwatch tokens`: who may use the HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from monitor.commands.common import (
    ByOption,
    ConfigOption,
    DatabaseOption,
    JsonOption,
    actor,
    group,
    one_of,
    reading,
)
from monitor.commands.shapes import Actor, Engine, acts
from monitor.errors import InferwatchError
from monitor.output import complain, print_json, print_rows, say

tokens_app = group("Tokens for the HTTP API and the pages.")


@tokens_app.command("create")
def create_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a person or a program")],
    scope: Annotated[str, typer.Option("--scope", help="read, or write for changes too")] = "read",
    by: ByOption = None,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, this once: only a hash of it is kept."""
    one_of(scope, ("read", "write"), "--scope")
    from storage.names import TokenExists
    from storage.tokens import Tokens

    with reading(config, database) as engine:
        try:
            token = Tokens(engine).create(name, scope, actor(by))
        except TokenExists as error:
            raise InferwatchError(str(error)) from None
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if as_json:
        print_json({"name": name, "scope": scope, "token": token})
        return
    say(token)
    complain(f"token {name} may {scope}; it is shown only now")


@tokens_app.command("list")
def list_tokens(
    config: ConfigOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Tokens by name, with when each was used last."""
    from storage.shown import time_of
    from storage.tokens import Tokens

    with reading(config, database) as engine:
        found = Tokens(engine).list()
    rows = [
        {
            "name": row["name"],
            "scope": row["scope"],
            "created_at": time_of(row["created_at_ms"]),
            "last_used_at": time_of(row["last_used_at_ms"]),
        }
        for row in found
    ]
    columns = ("name", "scope", "created_at", "last_used_at")
    print_rows(rows, columns, empty="no tokens", as_json=as_json)


@tokens_app.command("revoke")
@acts
def revoke_token(engine: Engine, person: Actor, name: Annotated[str, typer.Argument(metavar="NAME")]) -> str:
    """End a token and every browser session opened with it."""
    from storage.tokens import Tokens

    if not Tokens(engine).revoke(name, person):
        raise InferwatchError(f"no token {name}; `inferwatch tokens list` shows them")
    return f"{name} is revoked"
