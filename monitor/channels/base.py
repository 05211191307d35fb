"""What every channel does: hand one notification over, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from storage.types import ClaimedDelivery


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt: either a receiver answered (`status`), or it did not (`error` names why).

    Errors: "target_refused", "name_not_resolved", "connect_failed", "tls_failed", "timeout",
    "broken_response", "stopped"; of apprise also "not_accepted".
    """

    status: int | None = None  # HTTP status code
    error: str = ""
    detail: str = ""  # for a person; never holds secrets or what the receiver said
    retry_after: str | None = None  # the header, as it came
    accepted: bool = False  # taken, where there is no HTTP status to tell it by

    @property
    def arrived(self) -> bool:
        return self.accepted or (self.status is not None and 200 <= self.status < 300)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kind of receiver wants to get over HTTP.

    `body` is a pure function of the stored delivery, so that every attempt sends the same bytes. Raises
    ValueError for a payload it cannot show.
    """

    url: str
    body: Callable[[ClaimedDelivery], bytes]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[bytes, ...] = ()  # of Standard Webhooks signatures, the current one first


class Channel(Protocol):
    """Thread-safe: several deliveries may be on their way at once."""

    def send(self, delivery: ClaimedDelivery) -> Outcome:
        """One attempt, within the channel's deadline. Does not raise for anything a receiver does."""
        ...

    def close(self) -> None:
        """Break off what is on its way (outcome "stopped") and refuse what comes after."""
        ...
