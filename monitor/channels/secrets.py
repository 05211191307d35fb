"""Addresses and secrets of channels: from the environment, from a file, or from the settings themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monitor.channels.standard_webhooks import parse_secrets
from monitor.config import ChannelSettings
from monitor.errors import ConfigError

MAX_FILE_BYTES = 65_536


def url_of(name: str, settings: ChannelSettings, environment: Mapping[str, str]) -> str:
    """The address of a channel without surrounding white space. Raises ConfigError, without the address."""
    found = _looked_up(
        name, "url", environment, settings.url_env, settings.url_file, settings.url or ""
    ).strip()
    if not found:
        raise ConfigError(f"channels.{name}.url", "", "set url, url_env or url_file")
    return found


def secret_of(name: str, settings: ChannelSettings, environment: Mapping[str, str]) -> str:
    """The secret of a channel, "" without one. Raises ConfigError, without the secret."""
    written = settings.secret.get_secret_value() if settings.secret is not None else ""
    return _looked_up(name, "secret", environment, settings.secret_env, settings.secret_file, written).strip()


def signing_keys(name: str, settings: ChannelSettings, environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """The keys of Standard Webhooks, the current one first; none without a secret. Raises ConfigError."""
    text = secret_of(name, settings, environment)
    try:
        return tuple(parse_secrets(text)) if text else ()
    except ValueError as error:
        raise ConfigError(f"channels.{name}.secret", "***", str(error)) from None


def _looked_up(
    name: str,
    key: str,
    environment: Mapping[str, str],
    variable: str | None,
    file: Path | None,
    written: str,
) -> str:
    """The environment before the file before what is written."""
    if variable is not None:
        found = environment.get(variable, "")
        if not found:
            raise ConfigError(
                f"channels.{name}.{key}_env",
                variable,
                f"the environment variable is not set; export {variable}=...",
            )
        return found
    if file is None:
        return written
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ConfigError(f"channels.{name}.{key}_file", str(file), f"not readable: {reason}") from None
