"""A sink that stores nothing, so that a benchmark can tell what storing costs. No setting of the product leads here."""

from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LogBatch


class NullSink:
    """A LogSink that forgets."""

    async def write(self, batch: LogBatch, idempotency: IdempotencyKey | None = None) -> None:
        """Return at once."""

    async def check(self) -> None:
        """Say that all is well."""

    async def close(self) -> None:
        """Nothing is held."""
