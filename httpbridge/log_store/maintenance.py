"""What is done to a store in the background: merging, retention, forgetting of idempotency keys.

One process at a time does it, of all that write to the store: the one that holds its lease.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from secrets import token_hex

import msgspec
import structlog

from authsvc.runtime.logging import log_unexpected
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk_writes import maintain
from httpbridge.log_store.merging import MERGE_LIMITS, MergeLimits, Merger
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import Retainer, Retention
from httpbridge.log_store.sink import MaintainedStore

_LEASE_SECONDS = 60
_PAUSE_SECONDS = 0.02
"""After each of retention's transactions, which take a few milliseconds."""

_log = structlog.get_logger("httpbridge.log_store")


class MaintenanceLimits(msgspec.Struct, frozen=True):
    """How often what is done."""

    merge_seconds: float = 2.0
    retention_seconds: float = 60.0
    close_seconds: float = 5.0
    """For merging all that is left and giving free room back, at the end."""


MAINTENANCE_LIMITS = MaintenanceLimits()


class _LeaseLostError(Exception):
    """Somebody else maintains the store now."""


class Maintenance:
    """Maintains a store, which somebody else opens and closes; reads it by way of `reader`, which is closed with it."""

    def __init__(
        self,
        store: MaintainedStore,
        reader: ReadStore,
        retention: Retention,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limits: MaintenanceLimits = MAINTENANCE_LIMITS,
        merge_limits: MergeLimits = MERGE_LIMITS,
    ) -> None:
        """`monotonic` is in seconds."""
        self._store, self._reader = store, reader
        self._monotonic, self._sleep, self._limits = monotonic, sleep, limits
        self._merger = Merger(store, reader, monotonic=monotonic, sleep=self._rest, limits=merge_limits)
        self._retainer = Retainer(store, reader, retention, pause=partial(self._rest, _PAUSE_SECONDS))
        self._name = token_hex(8)
        self._held_at = float("-inf")
        """When the lease was taken or renewed last."""
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="log store maintenance")

    async def close(self) -> None:
        """End; before that merge what is left, and give free room back, as far as there is time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            with suppress(TimeoutError, StoreUnavailableError, StoreSetupError):
                async with asyncio.timeout(self._limits.close_seconds):
                    if await self._hold(_LEASE_SECONDS):
                        await self._merger.merge(is_last=True)
                        while await self._store.reclaim():  # merging leaves as much room free as it wrote
                            pass
                        await self._hold(-1)
        await self._reader.close()

    async def _run(self) -> None:
        retention_at = float("-inf")
        while True:
            await self._sleep(self._limits.merge_seconds)
            try:
                if await self._hold(_LEASE_SECONDS):
                    # Before merging, of which there may be much: a full disk can only be mended by dropping.
                    if self._monotonic() >= retention_at:
                        retention_at = self._monotonic() + self._limits.retention_seconds
                        await self._retainer.run()
                    await self._merger.merge(until=retention_at)
                self._is_failing = False
            except _LeaseLostError:
                pass  # whoever has it now goes on
            except (StoreUnavailableError, StoreSetupError) as error:
                if not self._is_failing:  # once: the next attempt comes soon
                    _log.warning("log_maintenance_failed", reason=str(error))
                self._is_failing = True
            except Exception as error:  # noqa: BLE001 - a defect, and ingestion shall not end for it
                log_unexpected(_log, error)

    async def _rest(self, seconds: float) -> None:
        """Sleep within a turn, and keep the lease, however long the turn is."""
        await self._sleep(seconds)
        if self._monotonic() - self._held_at > _LEASE_SECONDS / 3 and not await self._hold(_LEASE_SECONDS):
            raise _LeaseLostError

    async def _hold(self, seconds: int) -> bool:
        self._held_at = self._monotonic()  # before it is asked for
        return await self._store.transact(lambda connection: maintain(connection, self._name, seconds))
