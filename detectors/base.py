"""The contracts every detector keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from detectors.types import ScoreBatch, WindowBatch


class SeriesStates(Protocol):
    """Everything that scoring remembers, per series; struct-of-arrays inside, bytes outside.

    `dump` followed by `load` restores the state bit for bit, so that a restart changes no score.
    """

    def dump(self, series: str) -> bytes: ...
    def dump_all(self, series: Sequence[str]) -> list[bytes]: ...
    def load(self, series: str, state: bytes) -> None:
        """Raises ValueError when `state` was not written by this version of the format."""
        ...

    def drop(self, series: str) -> None: ...
    def __contains__(self, series: object) -> bool: ...
    def __len__(self) -> int: ...


class Scorer(Protocol):
    """A detector, or an ensemble of them, as the pipeline sees it: state in, scores out.

    Deterministic: the same states and batch give the same answer, bit for bit. Higher = more anomalous.
    """

    @property
    def version(self) -> str: ...

    def new_states(self) -> SeriesStates: ...

    def score(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
        """Score one window of every series of the batch and advance the states of just these series."""
        ...

    def rescore(self, batch: WindowBatch, states: SeriesStates) -> ScoreBatch:
        """Score amended windows against the present states, which stay as they are."""
        ...
