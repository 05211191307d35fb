"""Has it happened before? How alike two incidents are, by what their alerts share.

Pure, but for `similar_to`, which asks the database for the API, the pages and the command line alike.

The score is a weighted mean of Jaccard similarities over four kinds of traits: series, model and endpoint
(where), guilty features (what) and guilty slices (who). A kind that neither incident has does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage import queries

if TYPE_CHECKING:
    from storage.queries import Source

Row = Mapping[str, Any]
WEIGHTS = {"series": 0.25, "place": 0.2, "feature": 0.35, "slice": 0.2}
TOP_FEATURES = 3
MIN_SCORE = 0.2
MOST = 5


@dataclass(frozen=True, slots=True)
class Traits:
    """What an incident is recognised by."""

    series: frozenset[str] = frozenset()
    place: frozenset[str] = frozenset()  # "model x", "endpoint y"
    feature: frozenset[str] = frozenset()
    slice: frozenset[str] = frozenset()  # "version v7", ...


@dataclass(frozen=True, slots=True)
class Likeness:
    score: float  # in [0, 1]
    shared: list[str] = field(default_factory=list)  # "feature latency_p99_ms", the weightiest kind first


def traits_of(alerts: Iterable[Row]) -> Traits:
    """Traits of the alerts of one incident; features are the first three of each alert."""
    series, place, feature, part = set(), set(), set(), set()
    for alert in alerts:
        series.add(str(alert["series"]))
        place |= {f"{name} {alert[name]}" for name in ("model", "endpoint") if alert[name]}
        feature |= {str(row["feature"]) for row in alert["top_features"][:TOP_FEATURES]}
        part |= {f"{row['field']} {row['value']}" for row in alert["slices"]}
    return Traits(frozenset(series), frozenset(place), frozenset(feature), frozenset(part))


def likeness(one: Traits, other: Traits) -> Likeness:
    """Symmetric; 1.0 for equal traits, 0.0 without a shared one."""
    total = weight = 0.0
    shared: list[str] = []
    for kind in sorted(WEIGHTS, key=lambda kind: (-WEIGHTS[kind], kind)):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        if not mine and not theirs:
            continue
        both = mine & theirs
        weight += WEIGHTS[kind]
        total += WEIGHTS[kind] * len(both) / len(mine | theirs)
        prefix = "" if kind in ("place", "slice") else f"{kind} "
        shared += [f"{prefix}{name}" for name in sorted(both)]
    return Likeness(round(total / weight, 4) if weight else 0.0, shared)


def most_similar(
    this: str, candidates: Sequence[Row], alerts: Iterable[Row], limit: int
) -> list[dict[str, Any]]:
    """[{"score", "shared", "incident"}], the most alike first, the newer one where two are equally alike.

    `candidates` are incidents, newest first; `alerts` carry the `incident_id` they belong to.
    """
    by_incident: dict[str, list[Row]] = {}
    for alert in alerts:
        by_incident.setdefault(str(alert["incident_id"]), []).append(alert)
    mine = traits_of(by_incident.get(this, []))
    found = []
    for place, incident in enumerate(candidates):
        alike = likeness(mine, traits_of(by_incident.get(str(incident["incident_id"]), [])))
        if alike.score >= MIN_SCORE:
            found.append((-alike.score, place, alike, incident))
    found.sort(key=lambda each: each[:2])
    return [
        {"score": alike.score, "shared": alike.shared, "incident": incident}
        for _, _, alike, incident in found[:limit]
    ]


def similar_to(source: Source, incident_id: str, limit: int = MOST) -> list[dict[str, Any]]:
    """Incidents that opened before this one and are like it: [{"score", "shared", "incident"}].

    The most alike first, the newer one where two are equally alike; an incident comes with its `labels`.
    What was withdrawn counts on neither side. Empty for an unknown id.
    """
    found = most_similar(incident_id, *queries.earlier(source, incident_id), limit)
    shown = queries.with_labels(source, [row["incident"] for row in found])
    return [{**row, "incident": incident} for row, incident in zip(found, shown, strict=True)]
