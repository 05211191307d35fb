"""What every channel does: hand one notification over, and say what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from storage.types import ClaimedDelivery


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt: either a receiver answered (`status`), or it did not (`error` names why).

    Errors: "target_refused", "name_not_resolved", "connect_failed", "tls_failed", "timeout",
    "broken_response", "stopped".
    """

    status: int | None = None  # HTTP status code
    error: str = ""
    detail: str = ""  # for a person; never holds secrets or what the receiver said
    retry_after: str | None = None  # the header, as it came


class Channel(Protocol):
    """Thread-safe: several deliveries may be on their way at once."""

    def send(self, delivery: ClaimedDelivery) -> Outcome:
        """One attempt, within the channel's deadline. Does not raise for anything a receiver does."""
        ...

    def close(self) -> None:
        """Break off what is on its way (outcome "stopped") and refuse what comes after."""
        ...
