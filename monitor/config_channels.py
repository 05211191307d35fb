"""Settings of channels, and of the routes that lead to them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from monitor.timespans import TimeSpan, minutes, parse_span

ChannelType = Literal[
    "webhook", "cloudevents", "alertmanager", "alertmanager_webhook", "pagerduty", "slack", "apprise"
]
Event = Literal[
    "incident.opened",
    "incident.updated",
    "incident.resolved",
    "incident.reopened",
    "incident.reminder",
    "incident.acknowledged",
]
Severity = Literal["warning", "major", "critical"]
PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"
NO_DIGEST: frozenset[str] = frozenset({"alertmanager", "alertmanager_webhook", "pagerduty"})
"""Types whose receivers keep alerts, and have no place for a summary."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ChannelSettings(_Section):
    """One place that incidents are sent to."""

    type: ChannelType = Field("webhook", description="kind of channel")
    url: str | None = Field(
        None, description="http or https address of the receiver; an apprise address for type apprise"
    )
    url_env: str | None = Field(
        None, description="environment variable that holds the address, where it is a secret (Slack)"
    )
    url_file: Path | None = Field(None, description="file that holds the address")
    secret_env: str | None = Field(
        None,
        description="environment variable that holds the secret: signing secrets (whsec_..., several "
        "separated by spaces, the current one first), PagerDuty's routing key, Alertmanager's bearer token",
    )
    secret_file: Path | None = Field(None, description="file that holds the secret")
    secret: SecretStr | None = Field(None, description="the secret itself; prefer secret_env or secret_file")
    allow_private: bool = Field(
        False, description="allow private, loopback and link-local receivers of this channel"
    )
    events: list[Event] = Field(
        [
            "incident.opened",
            "incident.updated",
            "incident.resolved",
            "incident.reopened",
            "incident.reminder",
        ],
        description="events to send; type pagerduty gets incident.acknowledged too unless this is set",
    )
    resend_s: Annotated[float, Field(ge=1)] = Field(
        60.0, description="seconds after which a type alertmanager is told again of what still fires"
    )

    def wants(self, event: str) -> bool:
        """Whether the channel is to be told of an event."""
        told_of_people = self.type == "pagerduty" and "events" not in self.model_fields_set
        return event in self.events or (told_of_people and event == "incident.acknowledged")


class RouteSettings(_Section):
    """Which incidents a channel gets, and when. Of the routes that name it the first that matches decides."""

    channels: list[str] = Field(min_length=1, description="names of channels this route leads to")
    severities: list[Severity] = Field([], description="severities it is for; [] = all")
    models: list[str] = Field([], description="models it is for, * stands for anything; [] = all")
    tenants: list[str] = Field([], description="guilty tenants it is for, * stands for anything; [] = all")
    hours: list[str] = Field(
        [],
        description='times it is for: "mon-fri 08:00-18:00"; [] = always; otherwise later routes count',
    )
    quiet_hours: list[str] = Field(
        [], description='times in which it holds everything but ends back until they are over: "22:00-07:00"'
    )
    quiet_except: list[Severity] = Field(
        ["critical"], description="severities that are sent in quiet hours all the same"
    )
    time_zone: str = Field("UTC", description="time zone of the hours, such as Europe/Berlin")
    repeat_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="seconds between reminders of what is open and not acknowledged; 0 = none"
    )
    digest: Literal["never", "hourly", "daily"] = Field(
        "never", description="gather everything into one summary instead of sending each change"
    )
    digest_at: str = Field("09:00", description="time of day of a daily summary, in time_zone")

    @field_validator("hours", "quiet_hours")
    @classmethod
    def _spans(cls, texts: list[str]) -> list[str]:
        for text in texts:
            parse_span(text)
        return texts

    @field_validator("digest_at")
    @classmethod
    def _clock(cls, text: str) -> str:
        if minutes(text) > 1_439:
            raise ValueError("the last minute of a day is 23:59")
        return text

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (OSError, ValueError, LookupError):  # not found, or no name of a zone at all
            raise ValueError(f"{name!r} is no time zone; write a name such as Europe/Berlin or UTC") from None
        return name


@cache
def spans_of(texts: tuple[str, ...]) -> tuple[TimeSpan, ...]:
    return tuple(parse_span(text) for text in texts)
