"""Alembic's entry: runs on the connection, and inside the transaction, that `migrate` hands in."""

from __future__ import annotations

from alembic import context

import storage.access_schema
import storage.model_schema
import storage.rollup_schema  # noqa: F401  (the tables of these belong to the metadata)
from storage.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
