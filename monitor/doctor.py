"""`inferwatch doctor` and `config check`: what would keep the daemon from working, each with its fix."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

from monitor.config import ChannelSettings, Settings, SourceSettings
from monitor.errors import ConfigError, InferwatchError
from monitor.reach import broker_trouble, nobody_listens

CONNECT_TIMEOUT_S = 5.0
APPRISE_TIMEOUT_S = 30.0  # it imports more than a hundred services
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fix` says what to do and is empty when there is nothing to do."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def check_settings(settings: Settings, environment: Mapping[str, str]) -> list[Check]:
    """What the settings refer to and this machine lacks; no network."""
    checks = [_database_url(settings.database.url)]
    checks += _source_settings(settings.source, environment)
    for name, channel in sorted(settings.channels.items()):
        checks.append(_channel_settings(name, channel, environment))
    if not settings.channels:
        checks.append(
            Check(
                "channels",
                True,
                "none: incidents are stored and sent nowhere",
                "add a [channels.NAME] section",
            )
        )
    return checks


def _database_url(url: str) -> Check:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        return Check(
            "database.url", False, "no database URL", "use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    if backend not in ("sqlite", "postgresql"):
        return Check(
            "database.url", False, f"{backend} is not supported", "use sqlite:///FILE or postgresql://..."
        )
    return Check("database.url", True, redact_url(url))


def _source_settings(source: SourceSettings, environment: Mapping[str, str]) -> list[Check]:
    if source.kind == "stdin":
        return [Check("source", True, "stdin")]
    if source.kind == "file":
        if not source.paths:
            return [Check("source.paths", False, "no file is named", 'set source.paths = ["FILE"]')]
        return [
            Check(f"source.paths {path}", True, "readable")
            if path.is_file() and os.access(path, os.R_OK)
            else Check(
                f"source.paths {path}", False, "no file, or not readable", "correct the path or its rights"
            )
            for path in source.paths
        ]
    variable, file = source.sasl_password_env, source.sasl_password_file
    if source.security_protocol.startswith("SASL"):
        if source.sasl_mechanism is None or (variable is None and file is None):
            return [
                Check(
                    "source.sasl",
                    False,
                    f"{source.security_protocol} without credentials",
                    "set source.sasl_mechanism, source.sasl_username and source.sasl_password_env or _file",
                )
            ]
        if file is not None and not os.access(file, os.R_OK):
            return [Check("source.sasl_password_file", False, f"cannot read {file}", "correct the path")]
        if file is None and variable not in environment:
            return [
                Check("source.sasl_password_env", False, f"{variable} is not set", f"export {variable}=...")
            ]
    if source.ssl_cafile is not None and not source.ssl_cafile.is_file():
        return [Check("source.ssl_cafile", False, f"{source.ssl_cafile} is no file", "correct the path")]
    return [Check("source", True, f"{', '.join(source.topics)} at {source.bootstrap_servers}")]


def _channel_settings(name: str, channel: ChannelSettings, environment: Mapping[str, str]) -> Check:
    from monitor.channels.registry import SIGNED_TYPES, shape_of
    from monitor.channels.secrets import secret_of
    from monitor.channels.ssrf import TargetRefused, parse

    title = f"channels.{name}"
    try:
        if channel.type == "apprise":
            return _apprise(name, channel, environment)
        shape = shape_of(name, channel, environment)
        parse(shape.url)
        if channel.type in SIGNED_TYPES and not secret_of(name, channel, environment):
            fix = f"set {title}.secret_env; `openssl rand -base64 24` makes one, whsec_ goes in front"
            return Check(title, False, "no signing secret", fix)
    except ConfigError as error:
        return _wrong_option(error)
    except TargetRefused as error:
        return Check(title, False, str(error), f"correct {title}.url: a http or https address")
    return Check(title, True, f"{channel.type}, {redact_url(shape.url)}")


def _wrong_option(error: ConfigError) -> Check:
    """An option whose error says what is wrong and, behind a semicolon, what to do; or only what to do."""
    what, separator, fix = error.fix.partition("; ")
    if not separator:
        return Check(error.key, False, "is missing or wrong", error.fix)
    return Check(error.key, False, f"{error.value}: {what}" if error.value else what, fix)


def _apprise(name: str, channel: ChannelSettings, environment: Mapping[str, str]) -> Check:
    from monitor.channels.apprise import AppriseChannel
    from monitor.channels.secrets import url_of

    scheme = url_of(name, channel, environment).partition("://")[0]
    answer = AppriseChannel(name, channel, timeout_s=APPRISE_TIMEOUT_S, environment=environment).check()
    if answer.arrived:
        return Check(f"channels.{name}", True, f"apprise, {scheme}://{HIDDEN}")
    fix = f"correct channels.{name}.url as the apprise wiki says, or pip install 'inferwatch[apprise]'"
    return Check(f"channels.{name}", False, f"{answer.error}: {answer.detail}", fix)


def check_world(settings: Settings, wrong: Collection[str] = ()) -> list[Check]:
    """Database, broker with its topics, receivers: by connecting to each, bounded in time.

    Channels of which something is in `wrong` (names of checks of the settings) are passed over.
    """
    checks = [_guarded("database", _database, settings)]
    if settings.source.kind == "kafka":
        checks.append(_guarded("broker", _broker, settings))
    for name, channel in sorted(settings.channels.items()):
        if not any(f"{check}.".startswith(f"channels.{name}.") for check in wrong):
            checks.append(_receiver(name, channel))
    return checks


def _guarded(name: str, check: Callable[[Settings], Check], settings: Settings) -> Check:
    try:
        return check(settings)
    except Exception as error:  # whatever a driver raises is the finding
        reason = (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0][:300]
        fix = "start the database, correct database.url, or run `inferwatch db upgrade`"
        if name == "broker":
            reason, fix = _no_broker(settings, error, reason)
        return Check(name, False, reason, fix)


def _no_broker(settings: Settings, error: Exception, reason: str) -> tuple[str, str]:
    """What is wrong and what to do; the client itself only says that its time was over."""
    if isinstance(error, InferwatchError):
        return reason, "correct the [source] section"
    return broker_trouble(settings.source, CONNECT_TIMEOUT_S)


def _database(settings: Settings) -> Check:
    from sqlalchemy import text

    from storage.engine import connect, current_version

    engine = connect(settings.database.url)
    shown = redact_url(settings.database.url)
    try:
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
            return _new_sqlite_file(Path(engine.url.database or ""), shown)
        if current_version(engine) is None:
            return Check("database", True, f"{shown} is empty; `inferwatch run` makes the tables")
        with engine.connect() as connection:
            windows = connection.execute(text("select count(*) from window_history")).scalar_one()
    finally:
        engine.dispose()
    return Check("database", True, f"{shown}, {windows} windows")


def _new_sqlite_file(path: Path, shown: str) -> Check:
    folder = path.resolve().parent
    if os.access(folder, os.W_OK):
        return Check("database", True, f"{shown} is not there yet; `inferwatch run` makes it")
    return Check(
        "database", False, f"{folder} is not there or not writable", "make the folder or correct database.url"
    )


def _broker(settings: Settings) -> Check:
    from kafka import KafkaConsumer

    from monitor.sources.kafka_client import client_options

    source = settings.source
    options = {**client_options(source), "bootstrap_timeout_ms": int(CONNECT_TIMEOUT_S * 1000)}
    trouble = nobody_listens(source, CONNECT_TIMEOUT_S)
    if trouble is not None:
        return Check("broker", False, *trouble)
    consumer = KafkaConsumer(**options)
    try:
        known = consumer.topics()
        missing = [topic for topic in source.topics if topic not in known]
        if missing:
            return Check(
                "topic",
                False,
                f"{', '.join(missing)} does not exist at {source.bootstrap_servers}",
                f"create it (kafka-topics.sh --bootstrap-server {source.bootstrap_servers} --create --topic "
                f"{missing[0]} --partitions 4), or correct source.topics",
            )
        counts = {topic: len(consumer.partitions_for_topic(topic) or ()) for topic in source.topics}
    finally:
        consumer.close(timeout_ms=2_000)
    return Check("broker", True, ", ".join(f"{topic}: {n} partitions" for topic, n in counts.items()))


def _receiver(name: str, channel: ChannelSettings) -> Check:
    """Whether the address is allowed and something listens there; nothing is sent. `notify test` sends."""
    from monitor.channels.registry import shape_of
    from monitor.channels.ssrf import TargetRefused, addresses, parse

    title, url = f"channels.{name}", ""
    try:
        if channel.type == "apprise":
            return _apprise(name, channel, os.environ)
        url = shape_of(name, channel, os.environ).url
        target = parse(url)
        found = addresses(target, allow_private=channel.allow_private)
        with socket.create_connection((found[0], target.port), CONNECT_TIMEOUT_S):
            return Check(title, True, f"{channel.type}, {target.host}:{target.port} accepts connections")
    except ConfigError as error:
        return _wrong_option(error)
    except TargetRefused as error:
        fix = (
            f"correct {title}.url, or set {title}.allow_private = true if the receiver is meant to be inside"
        )
        return Check(title, False, str(error), fix)
    except OSError as error:
        fix = f"start the receiver or correct {title}.url"
        return Check(title, False, f"{redact_url(url)}: {error.strerror or error}", fix)


def redact_url(url: str) -> str:
    """A URL without its password, and without path and query for http, where they often are the secret."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        host += f":{parts.port}" if parts.port else ""
    except ValueError:
        return HIDDEN
    user = f"{parts.username}:{HIDDEN}@" if parts.password else f"{parts.username}@" if parts.username else ""
    if parts.scheme in ("http", "https"):
        path = f"/{HIDDEN}" if parts.path.strip("/") or parts.query else parts.path
        user = f"{HIDDEN}@" if user else ""
        return urlunsplit(SplitResult(parts.scheme, user + host, path, "", ""))
    if parts.scheme.startswith("sqlite"):
        return url
    query = HIDDEN if "password" in parts.query else parts.query
    return urlunsplit(SplitResult(parts.scheme, user + host, parts.path, query, ""))
