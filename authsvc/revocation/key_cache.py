"""The keys that this process knows: one more holder of the lease protocol, connected to `watch` without a wire.

It holds a lease while the service is busy; otherwise revocations need not wait for it, nor keep-alives be committed.
The lease is short, because revocations wait for its end when the process was killed.
"""

import asyncio
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import structlog

from authsvc.client.api_key import Digest
from authsvc.client.holder import Holder, StreamBrokenError
from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import KeyServiceError, RevisionsLostError
from authsvc.revocation.change_feed import Outage
from authsvc.revocation.watch import Watch
from authsvc.runtime.clock import happens
from authsvc.storage.key_store import KeyStore
from authsvc.storage.records import KEY_CACHE_ID_PREFIX, ActiveKey, Snapshot
from authsvc.v1 import key_service_pb2 as pb

LEASE_SECONDS_MAX = 5.0
_KEYS_MAX = 50_000
_UNKNOWN_MAX = 10_000
_BUSY_KEYS = 100
"""So many keys within a second save more than a lease costs, which is a commit every 1.7 s and one for each change."""
_BUSY_SECONDS = 1.0
_IDLE_SECONDS = 10.0
"""Without so many keys within a second, until the release."""
_BACK_OFF_SECONDS_MIN = 0.05
_BACK_OFF_SECONDS_MAX = 2.0
_RELEASE_SECONDS_MAX = 1.0

_Key = TypeVar("_Key")
_log = structlog.get_logger("authsvc")


class CachedKeys(Generic[_Key]):
    """Whose active key each digest is, or that it is none: apart, so that probing cannot push out keys. Pure."""

    def __init__(self, keys_max: int = _KEYS_MAX, unknown_max: int = _UNKNOWN_MAX) -> None:
        """By default about 25 MB, and 70 MB with responses. The least recently used digest leaves first."""
        self._keys: OrderedDict[Digest, _Key | None] = OrderedDict()
        self._unknown: OrderedDict[Digest, _Key | None] = OrderedDict()
        self._keys_max = keys_max
        self._unknown_max = unknown_max

    def get(self, digest: Digest) -> _Key | None:
        """Return whose key the digest is, None for nobody's. Raises KeyError when that is not known."""
        room = self._keys if digest in self._keys else self._unknown
        room.move_to_end(digest)
        return room[digest]

    def put(self, digest: Digest, key: _Key | None) -> None:
        """Note whose key a digest is."""
        room, count_max = (self._unknown, self._unknown_max) if key is None else (self._keys, self._keys_max)
        room[digest] = key
        if len(room) > count_max:
            room.popitem(last=False)

    def drop(self, digest: Digest) -> None:
        """Forget what is known of a digest."""
        self._keys.pop(digest, None)
        self._unknown.pop(digest, None)

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._unknown.clear()


class KeyCache:
    """Keys from memory where that is allowed. Made and used in one event loop; `run` is its life."""

    def __init__(self, store: KeyStore, watch: Watch, name: str, clock: Callable[[], float]) -> None:
        """`name` is a label for operators; `clock`, in seconds, counts while the machine is suspended (rule 12)."""
        self._store = store
        self._watch = watch
        self._name = name
        self._clock = clock
        self._known: CachedKeys[ActiveKey] = CachedKeys()
        self._holder = self._new_holder()
        self._due = asyncio.Event()
        """A keep-alive is: it acknowledges a change, or releases its lease."""
        self._wanted = asyncio.Event()
        self._uses = 0
        self._counted_from = float("-inf")
        self._busy_until = float("-inf")
        self._leaving = False
        self._left = asyncio.Event()
        self._outage = Outage("key_cache_lost", "key_cache_back")

    def _new_holder(self) -> Holder:
        # Rule 8: a new id each time, since the last one released its lease.
        return Holder(KEY_CACHE_ID_PREFIX + secrets.token_hex(16), self._name, self._known, LEASE_SECONDS_MAX)

    def get(self, digest: Digest) -> tuple[str, int, ActiveKey | None] | None:
        """Return as of which epoch and revision whose key a digest is; None where the database has to be asked."""
        now = self._clock()  # rule 2: read at every use, after the request arrived
        self._uses += 1
        if self._uses >= _BUSY_KEYS:
            if now - self._counted_from <= _BUSY_SECONDS:
                self._busy_until = now + _IDLE_SECONDS
                self._wanted.set()
            self._uses, self._counted_from = 0, now
        holder = self._holder
        if not holder.is_live(now) or self._store.database.is_lost:
            return None
        try:
            return holder.epoch, holder.applied_revision, self._known.get(digest)
        except KeyError:
            return None

    async def read(self, digests: Sequence[Digest]) -> Snapshot:
        """Return what the database says of these digests, at least one, and keep it; raise StoreUnavailableError."""
        snapshot = await self._store.lookup(digests)
        if self._holder.may_keep(snapshot.revision, snapshot.epoch):  # rule 4
            for digest in digests:
                self._known.put(digest, snapshot.keys.get(digest))
        return snapshot

    async def run(self) -> None:
        """Hold a lease whenever the service is busy, until cancelled or `leave`."""
        try:
            while not self._leaving:
                await self._wanted.wait()
                self._wanted.clear()
                self._holder = self._new_holder()
                await self._hold()
        finally:
            self._left.set()

    async def leave(self) -> None:
        """Release the lease, and use the database from then on. Return when that is committed, or after a second."""
        self._leaving = True
        self._wanted.set()
        self._due.set()
        await happens(self._left, _RELEASE_SECONDS_MAX)

    async def _hold(self) -> None:
        back_off_seconds = _BACK_OFF_SECONDS_MIN
        while self._is_wanted() and not self._holder.is_released:
            lease_before = self._holder.lease_ends_at
            stream, keep_alive = self._holder.open(self._clock())
            try:
                await self._watch.serve(self._keep_alives(keep_alive), partial(self._hear, stream), None)
            except (KeyServiceError, StreamBrokenError) as error:
                _log.debug("key_cache_stream_ended", reason=str(error))
                if isinstance(error, RevisionsLostError):
                    self._holder.forget()
            except Exception as error:  # noqa: BLE001 - see Outage
                self._outage.failed(error)
            if self._holder.lease_ends_at > lease_before:
                back_off_seconds = _BACK_OFF_SECONDS_MIN
            if self._is_wanted() and not self._holder.is_released:
                await asyncio.sleep(back_off_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            back_off_seconds = min(back_off_seconds * 2, _BACK_OFF_SECONDS_MAX)
        self._holder.release()  # where there was no stream to say it on: the lease ends soon

    def _is_wanted(self) -> bool:
        return not self._leaving and self._clock() < self._busy_until

    async def _keep_alives(self, keep_alive: KeepAlive) -> AsyncIterator[KeepAlive]:
        """Yield what a bridge would send. The next one is asked for when the lease of the last is committed."""
        yield keep_alive
        while self._is_wanted():
            await happens(self._due, self._holder.renew_at() - self._clock())
            self._due.clear()
            if self._is_wanted():
                yield self._holder.renew(self._clock())
        yield self._holder.release()

    async def _hear(self, stream: int, event: pb.WatchResponse) -> None:
        if self._holder.receive(stream, event):
            self._due.set()
        if self._holder.is_live(self._clock()):
            self._outage.worked()
