"""Who may do what over HTTP. Pure decisions about one request; monitor.api.guard carries them out.

- A token (bearer) or a session (cookie) says who asks; its scope says whether it may change something.
- A session rides along with whatever a browser sends, so a change through it must prove where it comes
  from: a header that no form can set, and no sign of another origin.
- The laptop case: bound to loopback, as long as no token exists, whoever sits at this machine may read and
  change as "local". The Host header must be a loopback name, so that no foreign name that was pointed here
  (DNS rebinding) passes for this machine.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from storage.tokens import Identity

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
LOCAL_USER = "local"
MARK_HEADER = "x-inferwatch"
RequireToken = Literal["auto", "always", "writes"]
Kind = Literal["none", "token", "session"]


@dataclass(frozen=True, slots=True)
class Policy:
    reads_need: RequireToken
    loopback_bind: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request shows beside its credentials."""

    method: str
    loopback_client: bool
    loopback_host: bool  # the Host header names this machine's loopback
    same_origin: bool  # Origin and Sec-Fetch-Site, where present, are of this origin
    marked: bool  # carries X-Inferwatch: 1

    @property
    def safe(self) -> bool:
        return self.method in SAFE_METHODS


@dataclass(frozen=True, slots=True)
class Shown:
    """The credentials of a request and what became of them."""

    kind: Kind
    identity: Identity | None = None  # None with a kind: not known, or no longer


@dataclass(frozen=True, slots=True)
class Verdict:
    status: Literal[200, 401, 403]
    reason: str
    user: str | None = None
    may_write: bool = False


def decide(policy: Policy, asked: Asked, shown: Shown, tokens_exist: bool) -> Verdict:
    """May this request pass, and as whom? A reason stands on every refusal."""
    if shown.kind == "token":
        if shown.identity is None:
            return Verdict(401, "the token is not known")
        return _known(shown.identity, asked)
    if shown.kind == "session" and shown.identity is not None:
        if not asked.safe and not (asked.marked and asked.same_origin):
            return Verdict(403, _unproven(asked))
        return _known(shown.identity, asked)
    local = policy.loopback_bind and asked.loopback_client and asked.loopback_host
    may_write = local and not tokens_exist and policy.reads_need != "always"
    if not asked.safe:
        if not may_write:
            return Verdict(
                401, "this needs a token of scope write: inferwatch tokens create NAME --scope write"
            )
        if not (asked.marked and asked.same_origin):
            return Verdict(403, _unproven(asked))
        return Verdict(200, "local", LOCAL_USER, True)
    if policy.reads_need == "writes" or (policy.reads_need == "auto" and local):
        return Verdict(200, "open", LOCAL_USER if may_write else None, may_write)
    return Verdict(401, "this needs a token: inferwatch tokens create NAME")


def _known(identity: Identity, asked: Asked) -> Verdict:
    may_write = identity.scope == "write"
    if not asked.safe and not may_write:
        return Verdict(403, f"the token {identity.name!r} may only read")
    return Verdict(200, "known", identity.name, may_write)


def _unproven(asked: Asked) -> str:
    if not asked.marked:
        return "a change without a bearer token must carry the header X-Inferwatch: 1"
    return "the request comes from another origin"


def is_loopback(host: str | None) -> bool:
    """True for localhost and addresses of the loopback interface, with or without [brackets]."""
    if not host:
        return False
    name = host.strip().strip("[]").lower()
    if name in ("localhost", "localhost."):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def host_name(header: str | None) -> str | None:
    """The name in a Host header without its port; None when it is absent or malformed."""
    if not header:
        return None
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def is_same_origin(origin: str | None, fetch_site: str | None, host: str | None) -> bool:
    """True unless a header that browsers set says that another origin has sent the request.

    Schemes are not compared: a proxy may have taken TLS off.
    """
    if fetch_site is not None and fetch_site.strip().lower() != "same-origin":
        return False
    if origin is None:
        return True
    try:
        split = urlsplit(origin.strip().lower())
        theirs, default = split.netloc, {"http": ":80", "https": ":443"}.get(split.scheme, "")
    except ValueError:
        return False
    ours = (host or "").strip().lower()
    return bool(theirs) and bool(default) and theirs.removesuffix(default) == ours.removesuffix(default)
