"""`inferwatch notify test` and `inferwatch webhook listen`."""

from __future__ import annotations

import os
import uuid
from typing import Annotated

import typer

from monitor.clock import SystemClock, rfc3339
from monitor.commands import completion
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, group, load_settings
from monitor.errors import ConfigError, InferwatchError
from monitor.output import print_json, say

notify_app = group("Try the channels.")
webhook_app = group("Receive webhooks.")


@notify_app.command("test")
def notify_test(
    channel: Annotated[
        str,
        typer.Argument(
            metavar="CHANNEL", help="its name in the configuration", autocompletion=completion.channels
        ),
    ],
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one test message now, past the outbox, and say what the receiver answered; any type of channel."""
    import json

    from monitor.delivery import make_channels
    from storage.types import ClaimedDelivery

    settings = load_settings(config, database)
    if channel not in settings.channels:
        known = ", ".join(sorted(settings.channels)) or "none is configured"
        raise ConfigError("CHANNEL", channel, f"no such channel; known: {known}")
    clock = SystemClock()
    now_ms = clock.now_ms()
    body = {
        "type": "test",
        "timestamp": rfc3339(now_ms),
        "data": {"title": "A test message", "summary": "A test message of Inferwatch; nothing is wrong."},
    }
    alone = settings.model_copy(update={"channels": {channel: settings.channels[channel]}})
    sender = make_channels(alone, clock)[channel]  # what is wrong with the others is not asked
    outcome = sender.send(
        ClaimedDelivery(
            delivery_id=str(uuid.uuid4()),
            incident_id="",
            event="test",
            channel=channel,
            payload=json.dumps(body),
            attempts=0,
            created_at_ms=now_ms,
            first_attempt_at_ms=None,
        )
    )
    sender.close()
    answer = outcome.detail if outcome.accepted else f"{outcome.error} {outcome.detail}".strip()
    said = f"HTTP {outcome.status}" if outcome.status is not None else answer
    arrived = outcome.arrived
    if as_json:
        print_json({"channel": channel, "delivered": arrived, "answer": said})
    elif arrived:
        say(f"{channel}: delivered ({said})")
    if not arrived:
        raise InferwatchError(f"{channel}: not delivered ({said})")


@webhook_app.command("listen")
def webhook_listen(
    host: Annotated[str, typer.Option("--host", help="address to bind")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 = any free one")] = 8808,
    secret_env: Annotated[
        str | None,
        typer.Option("--secret-env", metavar="NAME", help="variable that holds the whsec_... secret"),
    ] = None,
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """Receive webhooks on this machine, verify their signatures and show them."""
    from monitor.listen import serve

    secret = None if secret_env is None else os.environ.get(secret_env)
    if secret_env is not None and not secret:
        raise ConfigError("--secret-env", secret_env, "the environment variable is not set")
    try:
        serve(host, port, secret)
    except ValueError as error:
        raise ConfigError("--secret-env", secret_env, str(error)) from None
    except OSError as error:
        where = f"cannot listen at {host}:{port}: {error.strerror or error}"
        raise InferwatchError(f"{where}; choose another --host or --port") from None
