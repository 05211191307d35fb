"""CloudEvents 1.0 in structured JSON mode."""

from __future__ import annotations

from monitor.channels.notice import encode, read
from storage.types import ClaimedDelivery

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
SOURCE = "/inferwatch"
TYPE_PREFIX = "inferwatch."


def body(delivery: ClaimedDelivery) -> bytes:
    """`id` is the delivery's, so that source and id tell a repetition, as the specification asks."""
    notice = read(delivery)
    event = {
        "specversion": "1.0",
        "id": notice.delivery_id,
        "source": SOURCE,
        "type": TYPE_PREFIX + notice.kind,
        "time": notice.at,
        "datacontenttype": "application/json",
        **({"subject": notice.incident_id} if notice.incident_id else {}),
        "data": notice.data,
    }
    return encode(event)
