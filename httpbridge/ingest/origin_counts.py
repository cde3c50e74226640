"""How many requests come from which origin, per project and hour: counted here, kept in the log store.

`handler` counts each request that has an Origin and a valid key, blocked ones included. Origins are whatever clients
send, so memory is bounded whatever comes, and a store that fails costs counts, never a request.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol

import structlog

from authsvc.client.verdicts import ORIGIN_CHARACTERS_MAX
from authsvc.runtime.logging import log_unexpected
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.origin_store import OriginCount

OTHER = "(other origins)"
"""Stands for what came after ORIGINS_MAX others."""

NOT_AN_ORIGIN = "(not an origin)"
"""Stands for what no browser sends, which is not kept."""

ORIGINS_MAX = 100
"""Of one project in one hour and process; as many again that are blocked, and then OTHER. A list has as many."""

ENTRIES_MAX = 20_000
"""Of all projects: about 6 MB. What is new beyond it is not counted until the hour ends."""

FLUSH_SECONDS = 5.0

CLOSE_SECONDS_MAX = 5.0
"""How long a store that does not respond keeps the process from ending, twice."""

_FLUSH_ROWS = 1000  # a transaction, so that no log waits long for it
_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]{0,31}://[^\s/?#@%\\]+")
_LIKE_A_KEY = re.compile(r"dt_[0-9a-f]{24}")

_log = structlog.get_logger("httpbridge.origin_counts")

_Key = tuple[str, str, bool]
"""Project, origin, whether it was admitted."""


class OriginCounterStore(Protocol):
    """Where counts are kept."""

    async def add(self, counts: Sequence[OriginCount], now: datetime) -> None:
        """Add to what is stored. Raises StoreUnavailableError when nothing was added."""

    async def close(self) -> None:
        """Let go of the store."""


class OriginCounts:
    """Counts in memory. From `start` on they are taken to the store; `close` stores the last ones. `now` is aware UTC.

    What comes within a flush of the end of an hour may count for the next one: so the clock is read once a flush,
    and not at every request.
    """

    def __init__(
        self, store: OriginCounterStore, *, now: Callable[[], datetime], flush_seconds: float = FLUSH_SECONDS
    ) -> None:
        self._store = store
        self._now = now
        self._flush_seconds = flush_seconds
        self._counts: dict[_Key, int] = {}
        """Since the last flush. An entry stays, at zero, until the hour ends: it is one of ORIGINS_MAX."""
        self._of_project: dict[tuple[str, bool], int] = {}
        """How many of the entries a project has."""
        self._unstored: dict[tuple[str, datetime, str], list[int]] = {}
        """What the store has not taken yet: admitted and blocked, by project, hour and origin."""
        self._hour = _hour_of(now())
        self._is_failing = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def count(self, project_id: str, origin: str, is_allowed: bool) -> None:
        """Count one request. Costs one look-up, but for an origin that is new in this hour."""
        try:
            self._counts[project_id, origin, is_allowed] += 1
        except KeyError:
            self._count_new(project_id, origin, is_allowed)

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_until_stopped(), name="origin counts")

    async def flush(self) -> None:
        """Take what was counted to the store; what it does not take is kept for the next time, within bounds."""
        self._collect()
        while self._unstored:
            keys = list(self._unstored)[:_FLUSH_ROWS]
            counts = [OriginCount(*key, *self._unstored.pop(key)) for key in keys]
            try:
                await self._store.add(counts, self._now())
            except StoreUnavailableError as error:
                for count in counts:
                    self._add_unstored((count.project_id, count.hour, count.origin), count.allowed, count.blocked)
                if not self._is_failing:
                    _log.warning("origin_counts_not_stored", reason=str(error))
                self._is_failing = True
                return
        self._is_failing = False

    async def close(self) -> None:
        """Stop flushing, store what was counted if the store takes it, and let go of the store."""
        self._stopping.set()
        try:
            if self._task is not None:
                await asyncio.wait([self._task], timeout=CLOSE_SECONDS_MAX)
                self._task.cancel()
                await asyncio.wait([self._task])
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS_MAX):
                    await self.flush()
        finally:
            await self._store.close()

    async def _flush_until_stopped(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._flush_seconds)
                return
            try:
                await self.flush()
            except Exception as error:  # noqa: BLE001 - a defect, and the next ones shall be counted still
                log_unexpected(_log, error)

    def _count_new(self, project_id: str, origin: str, is_allowed: bool) -> None:
        key = (project_id, _kept(origin), is_allowed)
        if key not in self._counts and self._of_project.get((project_id, is_allowed), 0) >= ORIGINS_MAX:
            key = (project_id, OTHER, is_allowed)
        if key in self._counts:
            self._counts[key] += 1
        elif len(self._counts) < ENTRIES_MAX:
            self._counts[key] = 1
            self._of_project[project_id, is_allowed] = self._of_project.get((project_id, is_allowed), 0) + 1

    def _collect(self) -> None:
        """Move what was counted to what the store is to take."""
        for (project_id, origin, is_allowed), number in self._counts.items():
            if number:
                self._add_unstored((project_id, self._hour, origin), number * is_allowed, number * (not is_allowed))
        hour = _hour_of(self._now())
        if hour == self._hour:
            self._counts = dict.fromkeys(self._counts, 0)
        else:
            self._counts, self._of_project, self._hour = {}, {}, hour

    def _add_unstored(self, key: tuple[str, datetime, str], allowed: int, blocked: int) -> None:
        entry = self._unstored.get(key)
        if entry is not None:
            entry[0] += allowed
            entry[1] += blocked
        elif len(self._unstored) < ENTRIES_MAX:
            self._unstored[key] = [allowed, blocked]


def _kept(origin: str) -> str:
    """Return what is kept of an Origin header."""
    if len(origin) > ORIGIN_CHARACTERS_MAX or not origin.isprintable():
        return NOT_AN_ORIGIN
    origin = origin.lower()
    if _ORIGIN.fullmatch(origin) is None or _LIKE_A_KEY.search(origin) is not None:  # some mix up their headers
        return NOT_AN_ORIGIN
    return origin


def _hour_of(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)
