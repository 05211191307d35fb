"""What the routes that change something read: JSON bodies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NO_NUL = r"^[^\x00]*$"  # PostgreSQL refuses it in any text
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
Words = Annotated[str, StringConstraints(max_length=8_000, pattern=NO_NUL)]
Value = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=NO_NUL)]
Time = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)]
MatcherField = Literal["series", "model", "endpoint", "tenant", "region", "model_version"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Remark(Body):
    """Who says so (default: the user of the token or session) and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"by": "ann", "comment": "rolled back to v6"}]})
    by: Name | None = Field(None, description="the person; default: the user of the token or session")
    comment: Words = Field("", description="why")


class Label(Remark):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "false_positive", "comment": "planned load test"}]}
    )
    label: Name = Field(description="true_positive and false_positive reach the next training")


class Note(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "the new cache is cold", "by": "ann"}]}
    )
    text: Annotated[str, StringConstraints(min_length=1, max_length=8_000, pattern=NO_NUL)]
    by: Name | None = Field(None, description="the person; default: the user of the token or session")


class RecurrenceBody(Body):
    """Windows that come back, in local time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"days": ["tue"], "start": "22:00", "duration": "4h", "time_zone": "Europe/Berlin"}]
        }
    )
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        [], max_length=7, description="days on which a window starts; none = every day"
    )
    start: Time = Field(description="local time, HH:MM")
    duration: Time = Field(description="30m, 4h or 1d, at most 7d")
    time_zone: Time = Field("UTC", description="a name such as Europe/Berlin")


class Silence(Body):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"matchers": {"model": "chat-large"}, "for": "2h", "comment": "load test"},
                {
                    "matchers": {"series": "rank/search"},
                    "recurrence": {
                        "days": ["tue"],
                        "start": "22:00",
                        "duration": "4h",
                        "time_zone": "Europe/Berlin",
                    },
                    "comment": "weekly maintenance",
                },
            ]
        }
    )
    matchers: dict[MatcherField, Value] = Field(
        min_length=1, description="field -> exact value; all of them must hold"
    )
    starts_at: Time | None = Field(None, description="RFC 3339, event time; default: now")
    ends_at: Time | None = Field(None, description="RFC 3339; or give `for`, or only a recurrence")
    length: Time | None = Field(None, alias="for", description="90m, 2h or 7d from the start")
    comment: Words = Field("", description="why")
    by: Name | None = Field(None, description="the person; default: the user of the token or session")
    recurrence: RecurrenceBody | None = None
