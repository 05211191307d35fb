"""Names that readers and writers share, and errors: cheap to import, for commands that only read."""

from __future__ import annotations

SCHEMA_VERSION = "0009"
"""The newest Alembic revision of storage/migrations; `upgrade` compares against it without Alembic."""

FEATURE_COLUMNS: tuple[str, ...] = (
    "request_count",
    "error_rate",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "tpot_p50_ms",
    "queue_p95_ms",
    "input_tokens_mean",
    "output_tokens_mean",
    "output_tokens_p95",
    "empty_output_rate",
    "max_output_rate",
    "memory_mb_max",
    "gpu_util_mean",
    "confidence_mean",
    "accuracy",
    "cost_usd_sum",
)
"""Feature columns of `window_history`; the same names in the same order as detectors.types.FEATURES."""

GOING_ON = ("open", "acknowledged")
"""Every status of an incident but "resolved": a list that an index can find, which `!=` is not."""

DELIVERY_STATES = ("pending", "claimed", "delivered", "dead")
VERDICTS = ("worse", "different", "better", "alike", "unclear")
"""What is said of a new model version against the one it replaces."""

SILENCE_FIELDS = ("series", "model", "endpoint", "tenant", "region", "model_version")
"""What a silence may match."""
WARM_UP_WINDOWS = 200
"""A series with fewer windows than this is shown as learning."""


class Fenced(Exception):  # noqa: N818  (the field's word for it)
    """Another owner has claimed the partition: nothing was written; drop the partition."""

    reclaim = False
    """True: the claim is still ours, but an earlier commit whose answer was lost holds less or more than
    memory does; claim the partition again instead of leaving it."""


class SeriesConflict(Exception):  # noqa: N818
    """A live series has turned up in a second partition: its windows cannot be told apart."""


class DatabaseUrlError(ValueError):
    """A database URL that cannot work; the message says what to write instead."""


class DatabaseInUse(RuntimeError):  # noqa: N818
    """Another daemon holds the SQLite file; the message names its process."""


class SchemaTooNew(RuntimeError):  # noqa: N818
    """A newer release has written the database."""


class UnknownIncident(LookupError):  # noqa: N818
    """No incident has this id."""


class TokenExists(ValueError):  # noqa: N818
    """A token of this name is there already."""
