"""What the service remembers, in one SQL database."""

from aggregator.store.sql import SqlStore

__all__ = ["SqlStore"]
