"""Everything else, through the `apprise` extra: chat, mail and paging services by their apprise address.

Apprise has neither a deadline that holds nor a guard, so each attempt is a process of its own: it is killed
at the deadline, uses no proxy of the environment, and its look-ups pass our guard (see apprise_child).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from monitor.channels.base import Outcome
from monitor.channels.notice import Notice, clip, read
from monitor.channels.secrets import url_of
from monitor.config import ChannelSettings
from storage.types import ClaimedDelivery

TITLE_CHARACTERS, BODY_CHARACTERS = 250, 4_000
LOCAL_SCHEMES = ("dbus", "gnome", "glib", "kde", "macosx", "qt", "syslog", "windows")
"""Schemes that act on this machine instead of sending something: refused."""


def message(delivery: ClaimedDelivery, dashboard_url: str = "") -> tuple[str, str]:
    """Title and body, plain text; a zero-width space behind each @ keeps names from becoming mentions."""
    notice = read(delivery, dashboard_url)
    lines = [notice.summary, *(f"{name}: {value}" for name, value in notice.facts if notice.is_incident)]
    lines += [_line(row) for row in notice.data.get("incidents", [])]
    lines += [notice.link] if notice.link else []
    return _harmless(clip(notice.headline, TITLE_CHARACTERS)), _harmless(
        clip("\n".join(line for line in lines if line), BODY_CHARACTERS)
    )


def _line(row: Mapping[str, object]) -> str:
    inner = Notice("", "digest", "", {"title": row.get("title")})
    return f"{row.get('severity')}, {row.get('status')}: {inner.title}"


def _harmless(text: str) -> str:
    return text.replace("@", "@\u200b")


class AppriseChannel:
    """Raises ConfigError for a missing address."""

    def __init__(
        self,
        name: str,
        settings: ChannelSettings,
        *,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
        dashboard_url: str = "",
    ) -> None:
        self._variables = dict(os.environ if environment is None else environment)
        self._url = url_of(name, settings, self._variables)
        self._allow_private = settings.allow_private
        self._timeout_s = timeout_s
        self._dashboard_url = dashboard_url
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[str]] = set()
        self._closed = False

    def check(self) -> Outcome:
        """Whether apprise knows this kind of address; sends nothing."""
        return self._ask("", "", only_check=True)

    def send(self, delivery: ClaimedDelivery) -> Outcome:
        return self._ask(*message(delivery, self._dashboard_url))

    def _ask(self, title: str, body: str, *, only_check: bool = False) -> Outcome:
        if self._url.partition("://")[0].lower() in LOCAL_SCHEMES:
            return Outcome(error="target_refused", detail="an address that acts on this machine")
        request = {
            "url": self._url,
            "title": title,
            "body": body,
            "allow_private": self._allow_private,
            "only_check": only_check,
        }
        with self._lock:
            if self._closed:
                return Outcome(error="stopped")
            child = subprocess.Popen(
                [sys.executable, "-m", "monitor.channels.apprise_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=self._environment(),
            )
            self._children.add(child)
        try:
            answer, _ = child.communicate(json.dumps(request), timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return Outcome(error="timeout")
        finally:
            with self._lock:
                self._children.discard(child)
        return Outcome(error="stopped") if self._closed and child.returncode else _outcome(answer)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()

    def _environment(self) -> dict[str, str]:
        """Without proxies, and with this package on the path wherever it is imported from."""
        kept = {k: v for k, v in self._variables.items() if not k.lower().endswith("_proxy")}
        root = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
        return {**kept, "PYTHONPATH": path}


def _outcome(answer: str) -> Outcome:
    word, _, detail = answer.strip().partition(" ")
    if word == "accepted":
        return Outcome(accepted=True, detail="taken by apprise")
    if word == "target_refused":
        hint = "; set allow_private on the channel if that is meant" if detail != "transition" else ""
        return Outcome(error=word, detail=f"a {detail} address{hint}")
    details = {
        "bad_url": "apprise does not know this kind of address",
        "not_installed": "install the extra: pip install 'inferwatch[apprise]'",
    }
    if word in details:
        return Outcome(error="not_accepted", detail=details[word])
    return Outcome(error="not_accepted", detail="apprise says that it was not taken")
