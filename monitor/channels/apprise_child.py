"""Sends one message with the `apprise` package, in a process of its own.

Reads one JSON object from stdin: url, title, body, allow_private, only_check (send nothing, only say whether
the address is known). Writes one word to stdout: "accepted", "not_accepted", "target_refused KIND", "bad_url"
or "not_installed".

Apprise opens its own connections and follows redirects, so the guard stands where every one of them passes:
at the look-up of names. No address that the guard refuses is ever handed to a socket.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from typing import Any

from monitor.channels.ssrf import PRIVATE_KINDS, address_kind

_look_up = socket.getaddrinfo
_refused: list[str] = []


def guard(allow_private: bool) -> None:
    """From now on look-ups in this process fail unless every address they find is allowed."""

    def guarded(host: Any, *args: Any, **more: Any) -> Any:
        found = _look_up(host, *args, **more)
        for entry in found:
            kind = address_kind(str(entry[4][0]))
            if kind != "public" and not (allow_private and kind in PRIVATE_KINDS):
                _refused.append(kind)
                raise OSError(f"refused: a {kind} address")
        return found

    socket.getaddrinfo = guarded


def main() -> None:
    request = json.load(sys.stdin)
    logging.disable(logging.CRITICAL)  # what apprise logs holds the address, which often is the secret
    try:
        import apprise
    except ImportError:
        sys.stdout.write("not_installed")
        return
    guard(bool(request["allow_private"]))
    sender = apprise.Apprise()
    if not sender.add(request["url"]):
        sys.stdout.write("bad_url")
        return
    if request["only_check"]:
        sys.stdout.write("accepted")
        return
    done = sender.notify(body=request["body"], title=request["title"], body_format=apprise.NotifyFormat.TEXT)
    refused = f"target_refused {_refused[0]}" if _refused else "not_accepted"
    sys.stdout.write("accepted" if done else refused)


if __name__ == "__main__":
    main()
