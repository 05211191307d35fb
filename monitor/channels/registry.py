"""From the settings of a channel to the channel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial

from monitor.channels import alertmanager, cloudevents, pagerduty, slack
from monitor.channels.apprise import AppriseChannel
from monitor.channels.base import Channel, Shape
from monitor.channels.secrets import secret_of, signing_keys, url_of
from monitor.channels.ssrf import Resolver, system_resolver
from monitor.channels.webhook import HttpChannel
from monitor.clock import Clock
from monitor.config import ChannelSettings
from monitor.config_channels import PAGERDUTY_URL
from monitor.errors import ConfigError

RESENT_TYPES = frozenset({"alertmanager"})
"""Types that forget what they are not told again."""
SIGNED_TYPES = frozenset({"webhook", "cloudevents", "alertmanager_webhook"})
_ROUTING_KEY = re.compile(r"[0-9A-Za-z]{32}", re.ASCII)
_TOKEN = re.compile(r"[!-~]{1,4096}", re.ASCII)  # what may stand in a header


def make_channel(
    name: str,
    settings: ChannelSettings,
    *,
    timeout_s: float,
    clock: Clock,
    dashboard_url: str = "",
    environment: Mapping[str, str] | None = None,
    resolver: Resolver = system_resolver,
) -> Channel:
    """Raises ConfigError for a wrong address or secret, without naming either."""
    variables = os.environ if environment is None else environment
    if settings.type == "apprise":
        return AppriseChannel(
            name, settings, timeout_s=timeout_s, environment=variables, dashboard_url=dashboard_url
        )
    shape = shape_of(name, settings, variables, dashboard_url)
    return HttpChannel(name, settings, shape, timeout_s=timeout_s, clock=clock, resolver=resolver)


def shape_of(
    name: str, settings: ChannelSettings, variables: Mapping[str, str], dashboard_url: str = ""
) -> Shape:
    """What goes over HTTP for a type that speaks it. Raises ConfigError."""
    if settings.type == "pagerduty":
        return _pagerduty(name, settings, variables, dashboard_url)
    url = url_of(name, settings, variables)
    keys = signing_keys(name, settings, variables) if settings.type in SIGNED_TYPES else ()
    if settings.type == "cloudevents":
        return Shape(url, cloudevents.body, content_type=cloudevents.CONTENT_TYPE, keys=keys)
    if settings.type == "alertmanager_webhook":
        body = partial(alertmanager.webhook_body, receiver=name, dashboard_url=dashboard_url)
        return Shape(url, body, keys=keys)
    if settings.type == "alertmanager":
        token = secret_of(name, settings, variables)
        if token and not _TOKEN.fullmatch(token):
            raise ConfigError(f"channels.{name}.secret", "***", "a token is one word of printable ASCII")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        body = partial(alertmanager.api_body, dashboard_url=dashboard_url)
        return Shape(alertmanager.api_url(url), body, headers=headers)
    if settings.type == "slack":
        return Shape(url, partial(slack.body, dashboard_url=dashboard_url))
    return Shape(url, lambda delivery: delivery.payload.encode(), keys=keys)


def _pagerduty(
    name: str, settings: ChannelSettings, variables: Mapping[str, str], dashboard_url: str
) -> Shape:
    key = secret_of(name, settings, variables)
    if not _ROUTING_KEY.fullmatch(key):
        fix = "set secret_env or secret_file to the integration's routing key, 32 letters and digits"
        raise ConfigError(f"channels.{name}.secret", "***" if key else "", fix)
    has_url = settings.url or settings.url_env or settings.url_file
    url = url_of(name, settings, variables) if has_url else PAGERDUTY_URL
    return Shape(url, partial(pagerduty.body, routing_key=key, dashboard_url=dashboard_url))
