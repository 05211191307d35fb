"""Small facts that every process on a database must agree on; the first one to state a fact is right."""

from __future__ import annotations

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from storage import schema
from storage.engine import reading

FACTS = schema.table(schema.FactTable)


class Facts:
    """Key and value texts that are written once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def recall(self, key: str) -> str | None:
        with reading(self.engine) as connection:
            return connection.execute(select(FACTS.c.value).where(FACTS.c.key == key)).scalar()

    def remember(self, key: str, value: str) -> str:
        """Store a fact unless it is known; returns the stored one, the same for every process."""
        known = self.recall(key)
        if known is not None:
            return known
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(FACTS), {"key": key, "value": value})
        except IntegrityError:  # another process was first
            known = self.recall(key)
            assert known is not None
            return known
        return value
