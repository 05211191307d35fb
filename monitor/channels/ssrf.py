"""The guard in front of every request to an address that somebody configured.

A webhook must not become a way into the network this software runs in. The URL is taken apart once, by
strict rules; its name is resolved once per attempt; every address must be public (or, where the channel
allows it, private); and the connection goes to the address that was checked, so that a second answer of
the name server changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from monitor.errors import DeliveryError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], list[str]]
"""(host, port) -> address literals; raises OSError when the name does not resolve."""

_NETWORKS: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this_network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "private"),  # carrier-grade NAT, RFC 6598
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link_local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "reserved"),
    ("192.88.99.0/24", "transition"),  # 6to4 relays, RFC 7526
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "reserved"),
    ("198.51.100.0/24", "reserved"),
    ("203.0.113.0/24", "reserved"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::1/128", "loopback"),
    ("::/96", "transition"),  # unspecified and IPv4-compatible
    ("::ffff:0:0/96", "transition"),  # IPv4-mapped
    ("::ffff:0:0:0/96", "transition"),  # IPv4-translated, RFC 2765
    ("64:ff9b::/96", "transition"),  # NAT64, RFC 6052
    ("64:ff9b:1::/48", "transition"),  # local NAT64, RFC 8215
    ("2001::/23", "transition"),  # Teredo, ORCHID and other protocol assignments
    ("2002::/16", "transition"),  # 6to4
    ("fc00::/7", "private"),
    ("fe80::/10", "link_local"),
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is handed out to the public
_BLOCKED = tuple((ipaddress.ip_network(network), kind) for network, kind in _NETWORKS)
PRIVATE_KINDS = frozenset({"private", "loopback", "link_local"})
"""What `allow_private` opens. Addresses that carry another address inside stay closed."""

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
MAX_URL_CHARACTERS = 2_048
MAX_ADDRESSES = 16


class TargetRefused(DeliveryError):  # noqa: N818  (what the guard says)
    """The guard refuses the target; `reason` is one of the reasons named in this module."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: nothing downstream parses it again."""

    scheme: str  # "http" | "https"
    host: str  # lower case; a name without trailing dot, or an address literal without brackets
    port: int
    path: str  # begins with "/", with the query
    is_literal: bool

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def url_at(self, address: str) -> str:
        """The same request, addressed to one address literal."""
        literal = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{literal}:{self.port}{self.path}"


def parse(url: str) -> Target:
    """Take a URL apart. Raises TargetRefused: bad_url, bad_scheme, userinfo, bad_host, bad_port."""
    if (
        len(url) > MAX_URL_CHARACTERS
        or not url.isascii()
        or any(c <= " " or c in '\\"<>^`{|}\x7f' for c in url)
    ):
        raise TargetRefused("bad_url", "only printable ASCII; write an international name in its xn-- form")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetRefused("bad_port" if "ort" in str(error) else "bad_url", "not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise TargetRefused("bad_scheme", "only http and https")
    if "@" in parts.netloc:
        raise TargetRefused("userinfo", "a user name or password in the address")
    if port == 0:
        raise TargetRefused("bad_port", "port 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host, is_literal = _host(parts.netloc)
    return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, is_literal)


def _host(netloc: str) -> tuple[str, bool]:
    """The host of a network location, and whether it is an address literal."""
    text = netloc.lower()
    if text.startswith("["):
        inner, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or "%" in inner:
            raise TargetRefused("bad_host", "not an IPv6 address")
        try:
            return str(ipaddress.IPv6Address(inner)), True
        except ValueError:
            raise TargetRefused("bad_host", "not an IPv6 address") from None
    host = text.partition(":")[0]
    if not _HOST.fullmatch(host) or len(host) > 253 or ".." in host:
        raise TargetRefused("bad_host", "not a host name")
    host = host.rstrip(".")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host)), True
        except ValueError:
            raise TargetRefused("bad_host", "an IPv4 address is written as four decimal numbers") from None
    return host, False


def address_kind(address: str) -> str:
    """ "public", or why an address literal is not: private, loopback, link_local, multicast, ..."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    for network, kind in _BLOCKED:
        if ip.version == network.version and ip in network:
            return kind
    handed_out = ip.version == 4 or ip in _GLOBAL_UNICAST
    return "public" if ip.is_global and handed_out else "reserved"


def system_resolver(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def addresses(target: Target, *, allow_private: bool, resolver: Resolver = system_resolver) -> list[str]:
    """The address literals to connect to, all of them allowed; resolve anew for every attempt.

    One address that is not allowed refuses the whole target: a name that points inside and outside at
    once is no accident. Raises TargetRefused (reason = kind of the address), OSError when the name does
    not resolve.
    """
    found = [target.host] if target.is_literal else resolver(target.host, target.port)
    if not found:
        raise OSError(f"{target.host} has no address")
    for address in found:
        kind = address_kind(address)
        if kind != "public" and not (allow_private and kind in PRIVATE_KINDS):
            hint = "; set allow_private on the channel if that is meant" if kind in PRIVATE_KINDS else ""
            raise TargetRefused(kind, f"{target.host} is at a {kind} address{hint}")
    return found[:MAX_ADDRESSES]
