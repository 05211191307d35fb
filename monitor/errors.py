"""One exception tree; a command's exit code hangs on the class."""

from __future__ import annotations


class InferwatchError(Exception):
    """Base of every error this software raises on purpose. Exit code 1."""

    exit_code = 1


class ConfigError(InferwatchError):
    """A wrong setting: names the key, the value and the fix. Exit code 78 (EX_CONFIG)."""

    exit_code = 78

    def __init__(self, key: str, value: object, fix: str) -> None:
        super().__init__(f"{key} = {value!r}: {fix}")
        self.key, self.value, self.fix = key, value, fix


class SourceError(InferwatchError):
    """The log cannot be read."""


class DecodeError(InferwatchError):
    """A message that is not a record; `reason` is one of the documented reject reasons."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class DeliveryError(InferwatchError):
    """A notification could not be handed over."""
