"""Where logs are stored durably.

`LogSink` is all that the rest of the bridge sees of a store.
"""

from typing import Protocol

from authsvc.runtime.database_url import SetupError
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LogBatch

StoreSetupError = SetupError
"""The log store cannot be used as it is set up; the text is one line for the operator."""


class LogSink(Protocol):
    """A durable store of log batches."""

    async def write(self, batch: LogBatch, idempotency: IdempotencyKey | None = None) -> None:
        """Return once every entry of the batch is durably stored, now or when it came with this key before.

        Raises StoreUnavailableError when nothing of it is stored (or, where the store's
        answer to the commit was lost, all of it may be), and IdempotencyConflictError when another batch came with the
        key. A cancelled caller does not undo the write.
        """

    async def check(self) -> None:
        """Raise StoreUnavailableError when writes are refused now. Costs a probe at most once a second."""

    async def close(self) -> None:
        """Store what was accepted, then let go of the store."""
