"""The guard in front of webhook targets: forms of addresses, and a name server that changes its mind."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.channels.ssrf import PRIVATE_KINDS, TargetRefused, address_kind, addresses, parse
from monitor.channels.webhook import WebhookChannel
from monitor.clock import SystemClock
from monitor.config import ChannelSettings
from monitor.errors import ConfigError
from storage.types import ClaimedDelivery

DELIVERY = ClaimedDelivery("d1", "i1", "incident.opened", "c", "{}", 0, 0, None)

REFUSED_FORMS = [
    "http://127.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://127.0.0.01:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.255.255.254:{port}/",
    "http://0:{port}/",
    "http://0.0.0.0:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fc00::1]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://10.0.0.1:{port}/",
    "http://172.16.0.1:{port}/",
    "http://192.168.1.1:{port}/",
    "http://169.254.169.254:{port}/latest/meta-data/",
    "http://100.64.0.1:{port}/",
    "http://198.18.0.1:{port}/",
    "http://224.0.0.1:{port}/",
    "http://255.255.255.255:{port}/",
    "http://user:pass@127.0.0.1:{port}/",
    "http://example.org@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.org/",
    "http://example.org\t@127.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127.0.0.1%00.example.org:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "http://:{port}/",
    "http://127.0.0.1:{port}0000/",
]


@pytest.fixture
def canary() -> Iterator[tuple[int, list[object]]]:
    """A loopback port (both families) that counts connections."""
    seen: list[object] = []
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                seen.append(peer)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], seen
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def channel(url: str, **more: object) -> WebhookChannel:
    return WebhookChannel("c", ChannelSettings(url=url), timeout_s=2, clock=SystemClock(), **more)  # type: ignore[arg-type]


def test_no_form_of_an_inner_address_is_ever_connected_to(canary: tuple[int, list[object]]) -> None:
    port, seen = canary
    assert len(REFUSED_FORMS) >= 40
    for form in REFUSED_FORMS:
        try:
            outcome = channel(form.format(port=port)).send(DELIVERY)
        except ConfigError:
            continue  # refused when the configuration is read
        assert outcome.error == "target_refused", form
    assert seen == []


def test_the_canary_would_have_sung(canary: tuple[int, list[object]]) -> None:
    port, seen = canary
    settings = ChannelSettings(url=f"http://127.0.0.1:{port}/", allow_private=True)
    outcome = WebhookChannel("c", settings, timeout_s=2, clock=SystemClock()).send(DELIVERY)
    assert outcome.error == "broken_response"
    assert len(seen) == 1


def test_rebinding_reaches_nothing(canary: tuple[int, list[object]]) -> None:
    """The name is resolved once per attempt, and the connection goes where the check looked."""
    port, seen = canary
    answers = [["192.0.2.1", "127.0.0.1"], ["127.0.0.1"], ["::ffff:127.0.0.1"], ["93.184.216.34", "::1"], []]
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    rebinding = channel(f"http://rebind.example:{port}/", resolver=resolver)
    errors = [rebinding.send(DELIVERY).error for _ in answers]
    assert errors == ["target_refused"] * 4 + ["name_not_resolved"]
    assert len(asked) == len(answers)
    assert seen == []


def test_a_name_that_does_not_resolve_is_an_outcome() -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    assert channel("https://nowhere.example/", resolver=resolver).send(DELIVERY).error == "name_not_resolved"


@given(st.ip_addresses())
def test_public_is_never_less_strict_than_the_standard_library(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address_kind(str(ip)) == "public":
        assert ip.is_global
        assert not ip.is_multicast
        assert not ip.is_reserved


@given(st.ip_addresses(v=4))
def test_an_ipv6_wrapping_is_never_public(ip: ipaddress.IPv4Address) -> None:
    number = int(ip)
    for prefix, shift in (("::", 0), ("::ffff:0:0", 0), ("64:ff9b::", 0), ("2002::", 80)):
        wrapped = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + (number << shift))
        assert address_kind(str(wrapped)) not in {
            "public",
            *PRIVATE_KINDS,
        } or wrapped == ipaddress.ip_address("::1")


def test_allow_private_opens_private_and_nothing_else() -> None:
    for host in ("127.0.0.1", "10.1.2.3", "[::1]", "[fd00::1]", "169.254.1.1"):
        assert addresses(parse(f"http://{host}/"), allow_private=True)
    for host in ("0.0.0.0", "224.0.0.1", "[64:ff9b::a00:1]", "[::ffff:10.0.0.1]", "[2002:a00:1::]"):
        with pytest.raises(TargetRefused):
            addresses(parse(f"http://{host}/"), allow_private=True)


@pytest.mark.parametrize(
    ("url", "host_header", "path"),
    [
        ("https://Example.ORG/hook?a=b", "example.org", "/hook?a=b"),
        ("http://example.org:8080", "example.org:8080", "/"),
        ("https://example.org:443/", "example.org", "/"),
        ("http://[2606:4700::1111]:81/x", "[2606:4700::1111]:81", "/x"),
        ("http://my_service.internal/x#fragment", "my_service.internal", "/x"),
    ],
)
def test_a_good_address_keeps_its_meaning(url: str, host_header: str, path: str) -> None:
    target = parse(url)
    assert (target.host_header, target.path) == (host_header, path)
    assert target.url_at("2606:4700::1").startswith(f"{target.scheme}://[2606:4700::1]:{target.port}/")


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"https://h/{text}"):
        try:
            target = parse(url)
        except TargetRefused:
            continue
        assert target.scheme in ("http", "https")
        assert target.host
