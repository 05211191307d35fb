"""Slack's incoming webhooks: blocks, with every text escaped and inside Slack's limits.

Names come from the log. `&`, `<` and `>` are escaped, so that nothing becomes a mention or a link, and
`verbatim` keeps Slack from making mentions of bare words such as @here.
"""

from __future__ import annotations

from typing import Any

from monitor.channels.notice import Notice, clean, encode, read
from storage.types import ClaimedDelivery

HEADER_CHARACTERS = 150
SECTION_CHARACTERS = 3_000
FIELD_CHARACTERS = 2_000
FIELDS = 10
BLOCKS = 50
FALLBACK_CHARACTERS = 3_000
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = {"critical": "🔴", "major": "🟠", "warning": "🟡"}


def escape(text: str, limit: int) -> str:
    """`text` on one line, escaped, at most `limit` characters of the escaped form; no entity is cut."""
    escaped = [_ESCAPED.get(character, character) for character in clean(text)]
    if sum(map(len, escaped)) <= limit:
        return "".join(escaped)
    kept, size = [], 1  # the ellipsis
    for part in escaped:
        size += len(part)
        if size > limit:
            break
        kept.append(part)
    return "".join(kept) + "…"


def body(delivery: ClaimedDelivery, dashboard_url: str = "") -> bytes:
    """The message: `text` for notifications on a phone, `blocks` for the channel."""
    notice = read(delivery, dashboard_url)
    blocks = _digest(notice) if notice.kind == "digest" else _incident(notice)
    mark = "✅" if notice.is_over else _MARKS.get(notice.severity, "")
    headline = f"{mark} {notice.headline}".strip()
    header = {"type": "header", "text": _plain(headline, HEADER_CHARACTERS)}
    message = {
        "text": escape(headline, FALLBACK_CHARACTERS),
        "blocks": [header, *blocks][:BLOCKS],
        "unfurl_links": False,
        "unfurl_media": False,
    }
    return encode(message)


def _incident(notice: Notice) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if notice.summary:
        blocks.append({"type": "section", "text": _mrkdwn(escape(notice.summary, SECTION_CHARACTERS))})
    fields = [_field(name, value) for name, value in notice.facts]
    if notice.is_incident and fields:
        blocks.append({"type": "section", "fields": fields[:FIELDS]})
    if notice.link is not None:
        blocks.append(
            {"type": "section", "text": _mrkdwn(f"<{escape(notice.link, 2_000)}|Open the incident>")}
        )
    return blocks


def _digest(notice: Notice) -> list[dict[str, Any]]:
    """One section per incident, as many as fit; what does not fit is counted."""
    incidents = list(notice.data.get("incidents", []))
    summary = notice.summary or f"{len(incidents)} incidents"
    blocks = [{"type": "section", "text": _mrkdwn(escape(summary, SECTION_CHARACTERS))}]
    room = BLOCKS - 3
    blocks += [
        {"type": "section", "text": _mrkdwn(escape(_line(row), SECTION_CHARACTERS))}
        for row in incidents[:room]
    ]
    if len(incidents) > room:
        left = f"and {len(incidents) - room} more"
        blocks.append({"type": "section", "text": _mrkdwn(left)})
    return blocks


def _line(row: dict[str, Any]) -> str:
    mark = "✅" if row.get("status") == "resolved" else _MARKS.get(str(row.get("severity")), "")
    return f"{mark} {row.get('status')}: {row.get('title')} (since {row.get('started_at')})"


def _field(name: str, value: str) -> dict[str, Any]:
    return _mrkdwn(f"*{name}*\n{escape(value, FIELD_CHARACTERS - len(name) - 3)}")


def _mrkdwn(escaped: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": escaped, "verbatim": True}


def _plain(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": escape(text, limit), "emoji": False}
