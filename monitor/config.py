"""Settings: one frozen tree, units in the names, every wrong value named with its key and its fix."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from monitor.config_channels import NO_DIGEST
from monitor.config_channels import ChannelSettings as ChannelSettings
from monitor.config_channels import RouteSettings as RouteSettings
from monitor.config_errors import HIDDEN, PREFIX, check_variables, config_error
from monitor.errors import ConfigError

SERIES_FIELDS = ("model", "model_version", "endpoint", "tenant", "region")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class SourceSettings(_Section):
    """Where the log comes from."""

    kind: Literal["kafka", "file", "stdin"] = Field("kafka", description="kind of the log")
    bootstrap_servers: str = Field("localhost:9092", description="Kafka brokers, comma separated host:port")
    topics: list[str] = Field(["inference-logs"], min_length=1, description="Kafka topics to read")
    group_id: str = Field("inferwatch", min_length=1, description="Kafka consumer group of the fleet")
    reader: Literal["batches", "poll", "confluent"] = Field(
        "batches",
        description="how Kafka is read: whole record batches, the client's public poll, or librdkafka "
        "(the `confluent` extra)",
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where to begin in a partition that was never read before"
    )
    paths: list[Path] = Field([], description="files to read when kind is file; .gz and .zst are unpacked")
    max_record_bytes: Annotated[int, Field(ge=256, le=16 << 20)] = Field(
        262_144, description="bytes; a larger record is rejected as too_large"
    )
    fetch_max_bytes: Annotated[int, Field(ge=65_536)] = Field(
        32 << 20, description="bytes asked of a broker per fetch"
    )
    session_timeout_s: Annotated[float, Field(ge=6, le=300)] = Field(
        45.0, description="seconds after which the group gives a silent member's partitions away"
    )
    stall_timeout_s: Annotated[float, Field(ge=1)] = Field(
        60.0,
        description="seconds without a turn of the reading loop after which the daemon calls itself stuck; "
        "after twice as long it ends with exit code 75, to be started again",
    )
    stalled_after_s: Annotated[float, Field(ge=1)] = Field(
        300.0,
        description="seconds without a message from a partition that is not read to its end, or whose end no "
        "broker tells, after which it is an incident and holds the incidents of others back no longer",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to talk to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="SASL mechanism, with a SASL security_protocol"
    )
    sasl_username: str | None = Field(None, description="SASL user")
    sasl_password_env: str | None = Field(
        None, description="environment variable that holds the SASL password"
    )
    sasl_password_file: Path | None = Field(
        None,
        description="file that holds the SASL password, instead of sasl_password_env; read at each connect",
    )
    ssl_cafile: Path | None = Field(None, description="PEM file of the authorities to trust")
    ssl_certfile: Path | None = Field(
        None, description="PEM file of our certificate, where brokers ask for one"
    )
    ssl_keyfile: Path | None = Field(None, description="PEM file of our certificate's key")


class RecordSettings(_Section):
    """How a message becomes a record and a record finds its series."""

    format: Literal["native"] = Field("native", description="log format")
    series_by: list[str] = Field(
        ["model", "endpoint"], min_length=1, description=f"fields that name a series, of {SERIES_FIELDS}"
    )
    max_metrics: Annotated[int, Field(ge=0, le=64)] = Field(
        16, description="user metrics kept per partition; further names are ignored and counted"
    )

    @field_validator("series_by")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in SERIES_FIELDS:
                raise ValueError(f"{name!r} is no field to name a series by; use {', '.join(SERIES_FIELDS)}")
        if len(set(names)) != len(names):
            raise ValueError("a field stands twice; name each once")
        return names


class WindowSettings(_Section):
    """Event-time windows."""

    length_s: Annotated[int, Field(ge=1, le=86_400)] = Field(
        60, description="seconds per window; windows are aligned to the epoch"
    )
    allowed_lateness_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        10.0, description="seconds a window waits, in event time, behind its end"
    )
    revision_horizon_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        900.0, description="seconds behind its end in which late records still amend a window"
    )
    max_future_skew_s: Annotated[float, Field(ge=0)] = Field(
        300.0, description="seconds a record may lie ahead of this machine's clock; beyond it is rejected"
    )
    idle_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="seconds after which a partition that is fully read lets time pass without records"
    )
    max_series: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000,
        description="live series per partition; silent ones make room for new ones, and what finds no room "
        "is counted under one series named (overflow)",
    )
    empty_for_s: Annotated[float, Field(ge=0)] = Field(
        86_400.0, description="seconds a silent series goes on getting empty windows"
    )


class DetectionSettings(_Section):
    """The one knob of alarms, and what surrounds it."""

    false_alarms_per_week: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="acceptable false alarms per series and week"
    )
    resolve_after_windows: Annotated[int, Field(ge=1, le=1_440)] = Field(
        5, description="calm windows in a row after which an alert resolves"
    )
    reopen_within_s: Annotated[float, Field(ge=0)] = Field(
        1_800.0, description="seconds after its end in which an incident that comes back is reopened"
    )
    group_within_s: Annotated[float, Field(ge=0)] = Field(
        900.0, description="seconds after an incident's newest alert in which a related alert joins it"
    )
    group_wait_s: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="seconds of event time the first notification of an incident waits, so that it names "
        "what joins it meanwhile; looked at once a minute; what ends before is not told",
    )
    group_by: list[str] = Field(
        ["model"], description="fields that alerts share to be one incident; [] = one incident per series"
    )


class TrainingSettings(_Section):
    """When and on what the detectors are trained."""

    enabled: bool = Field(True, description="train on this installation's own windows")
    first_after_h: Annotated[float, Field(gt=0)] = Field(
        24.0, description="hours of event time before the first training"
    )
    every_h: Annotated[float, Field(gt=0)] = Field(168.0, description="hours of event time between trainings")
    drift_every_h: Annotated[float, Field(ge=0)] = Field(
        6.0,
        description="hours of event time between comparisons of the newest day with the windows trained on; "
        "drift brings the next training forward, 0 compares nothing",
    )
    history_days: Annotated[float, Field(gt=0)] = Field(30.0, description="days of windows to train on")
    max_windows: Annotated[int, Field(ge=1_000)] = Field(
        400_000,
        description="windows to train on at most, the newest; of many series some only, two days of each",
    )
    seed: int = Field(7, description="seed of everything random in training")
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        1_800.0, description="seconds after which a training process is ended"
    )


class DatabaseSettings(_Section):
    """Where everything is kept."""

    url: str = Field("sqlite:///inferwatch.db", description="SQLAlchemy URL, sqlite or postgresql")
    commit_interval_s: Annotated[float, Field(gt=0, le=60)] = Field(
        1.0,
        description="seconds between commits at the most, while records arrive; windows that close are "
        "written at once, and three times as much may pass where commits take long and a partition lags",
    )
    keep_windows_days: Annotated[float, Field(gt=0)] = Field(
        90.0, description="days of event time windows are kept"
    )
    keep_hours_days: Annotated[float, Field(gt=0)] = Field(
        730.0, description="days of event time the hourly sums of windows are kept"
    )
    keep_rejected_days: Annotated[float, Field(gt=0)] = Field(
        14.0, description="days rejected records are kept"
    )


class HttpSettings(_Section):
    """The API and the dashboard."""

    enabled: bool = Field(True, description="serve HTTP")
    host: str = Field("127.0.0.1", description="address to bind")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8800, description="TCP port; 0 = any free one")
    require_token: Literal["auto", "always", "writes"] = Field(
        "auto",
        description="reading needs a token: auto = unless bound to and asked from loopback, always, or "
        "writes = never; changes always need one of scope write",
    )
    session_h: Annotated[float, Field(gt=0, le=720)] = Field(
        12.0, description="hours until a browser must sign in again"
    )
    max_body_bytes: Annotated[int, Field(ge=1_024, le=1 << 20)] = Field(
        65_536, description="bytes; a longer request body is refused"
    )
    max_requests_per_minute: Annotated[int, Field(ge=1)] = Field(
        6_000, description="requests of one client, and of one token, after a burst of five seconds' worth"
    )


class DeliverySettings(_Section):
    """How notifications are sent."""

    timeout_s: Annotated[float, Field(gt=0, le=120)] = Field(10.0, description="seconds per attempt")
    max_age_h: Annotated[float, Field(gt=0)] = Field(
        72.0, description="hours after which an undelivered notification is given up"
    )
    backoff_initial_s: Annotated[float, Field(gt=0)] = Field(
        2.0, description="seconds before the second attempt; doubles, with jitter"
    )
    backoff_max_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="seconds between attempts at most"
    )
    dashboard_url: str | None = Field(
        None, description="address under which people reach the dashboard, for links in notifications"
    )


class Settings(BaseSettings):
    """The whole configuration. Environment: INFERWATCH_SECTION__KEY overrides the file."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__"
    )
    source: SourceSettings = SourceSettings()
    record: RecordSettings = RecordSettings()
    window: WindowSettings = WindowSettings()
    detection: DetectionSettings = DetectionSettings()
    training: TrainingSettings = TrainingSettings()
    database: DatabaseSettings = DatabaseSettings()
    http: HttpSettings = HttpSettings()
    delivery: DeliverySettings = DeliverySettings()
    channels: dict[str, ChannelSettings] = Field({}, description="channels by name")
    routes: list[RouteSettings] = Field([], description="which incidents go to which channel, and when")

    _file: ClassVar[Path | None] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)


def load(path: Path | None = None, *, database_url: str | None = None) -> Settings:
    """Read settings from a TOML file and the environment; `database_url` (a flag) wins over both.

    Raises ConfigError for a missing or malformed file, an unknown key or a value out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError("--config", str(path), "no such file; `inferwatch init` writes one") from None
        except OSError as error:
            raise ConfigError("--config", str(path), f"cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError("--config", str(path), f"not readable as TOML: {error}") from None
    check_variables(Settings, os.environ)
    try:
        settings = Settings(**values)
        if database_url is not None:
            database = DatabaseSettings(**{**settings.database.model_dump(), "url": database_url})
            settings = settings.model_copy(update={"database": database})
    except SettingsError as error:
        section = str(error).partition('"')[2].partition('"')[0].upper()
        fix = f"must be JSON; single options are set by {PREFIX}{section}__OPTION"
        raise ConfigError(f"{PREFIX}{section}", HIDDEN, fix) from None
    except ValidationError as error:
        raise config_error(Settings, error) from None
    _check_channels(settings)
    return settings


def _check_channels(settings: Settings) -> None:
    """Raises ConfigError for a channel without an address and a route that leads nowhere."""
    for name, channel in settings.channels.items():
        if channel.type != "pagerduty" and not (channel.url or channel.url_env or channel.url_file):
            raise ConfigError(f"channels.{name}.url", channel.url, "set url, url_env or url_file")
    for number, route in enumerate(settings.routes):
        for name in route.channels:
            known = settings.channels.get(name)
            if known is None:
                names = ", ".join(sorted(settings.channels)) or "none is configured"
                raise ConfigError(f"routes.{number}.channels", name, f"no such channel; known: {names}")
            if route.digest != "never" and known.type in NO_DIGEST:
                fix = f"channel {name} is of type {known.type}, which takes no summaries; use never"
                raise ConfigError(f"routes.{number}.digest", route.digest, fix)
