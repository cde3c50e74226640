"""Whether a key may be used: cached verdicts first, then few calls for all who ask at once."""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Self

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import ClientTls, TokenSource
from authsvc.client.holder import Holder
from authsvc.client.key_client import CALL_SECONDS_MAX, KEYS_PER_CALL_MAX, KeyClient
from authsvc.client.pending_lookups import PendingLookup, PendingLookups
from authsvc.client.release import release_on_sigterm
from authsvc.client.verdict_cache import VerdictCache, sendable_origin
from authsvc.client.verdicts import INVALID_KEY, Decision, KeyRefusedError, KeyServiceUnavailableError, Response
from authsvc.client.watcher import Watcher
from authsvc.runtime.clock import boot_clock
from authsvc.runtime.environment import Address, Token
from authsvc.runtime.library_logging import EventLogger

_PROBE_KEY = ApiKey("dt_" + "0" * 24)
"""Well-formed and never issued, as far as 96 random bits can promise it."""
_PROBE_INTERVAL_SECONDS = 1.0
_PROBE_WAIT_SECONDS = 1.0  # a readiness check has a deadline of its own; the probe goes on for the next one

_CALLS_MAX = 3
"""Under way at once, one of them kept for known keys. With one less, a key waits for a whole call before its own; one
more gains nothing, measured."""
_WAITING_MAX = 8 * KEYS_PER_CALL_MAX
"""Of either kind: what calls of some ten milliseconds answer well within the time that a caller waits."""

_JOINS_MAX = 2
"""Of equal lookups: a response that a change overtook is not cached, and the next one mostly is."""

_RELEASE_SECONDS_MAX = 2.0

_log = EventLogger()


class KeyServiceState(Enum):
    """How things stand with the key service."""

    NEVER_REACHED = auto()
    """It has not responded since this process started."""
    OK = auto()
    """It responds, and verdicts are cached under a live lease."""
    NO_LEASE = auto()
    """It responds, and there is no lease: each request asks."""
    AWAY_CACHED = auto()
    """It does not respond, and keys whose cached verdict lasts are still admitted."""
    AWAY = auto()


class KeyValidator:
    """Validates keys against one key service. Made anywhere, used in one event loop; `close` ends it.

    Verdicts are cached under the lease protocol (docs/watch-protocol.md): a key that was revoked is refused from the
    instant that Revoke returned. Without a live lease each request asks.
    """

    def __init__(
        self,
        address: Address | str,
        token: TokenSource | str,
        *,
        tls: ClientTls | None = None,
        name: str = "",
        cache: VerdictCache | None = None,
        calls_max: int = _CALLS_MAX,
        waiting_max: int = _WAITING_MAX,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Nothing is connected before the first call, or `start`, so that it may be made before there is an event loop.

        `name` is a label for operators, by default the host and process id. At most `calls_max` calls are under way at
        once, each about up to 256 keys; `waiting_max` keys that are known to be good, and as many others, wait for the
        next ones (see `pending_lookups`). Raises ConfigurationError when a TLS file cannot be used, ValueError for an
        address that is not HOST:PORT, for a token that cannot be sent and for less than 2 calls.
        """
        address = Address.parse(address) if isinstance(address, str) else address
        token = TokenSource(Token.parse(token)) if isinstance(token, str) else token
        self._clock = clock
        self._cache = cache or VerdictCache()
        self._client = KeyClient(address, token, tls, clock)
        self._holder = Holder("", name, self._cache)
        self._watcher = Watcher(self._holder, address, token, tls, clock)
        self._watching: asyncio.Task[None] | None = None
        """From the first call on, in the event loop that it is used in."""
        self._lookups = PendingLookups(self._look_up, clock, calls_max=calls_max, waiting_max=waiting_max)
        self._closed = False
        self._reached = False
        self.fault: str | None = None
        """Why the key service gave no verdict at the last call, in one line for a health page; None when it did."""
        self._outcome_at = float("-inf")

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to watch, so that the first verdicts can be cached already. SIGTERM then releases the lease."""
        if self._watching is not None or self._closed:
            return
        # Rule 8: a random id for each validator, drawn by the process that uses it.
        self._holder.holder_id = secrets.token_hex(16)
        self._holder.name = self._holder.name or f"{socket.gethostname()}:{os.getpid()}"
        self._watching = asyncio.create_task(self._watcher.run(), name="key service watcher")
        release_on_sigterm(self._watching, self._watcher.leave)

    @property
    def has_lease(self) -> bool:
        """Whether cached verdicts may be used now."""
        return self._holder.is_live(self._clock())

    def cached(self, api_key: ApiKey, origin: str | None = None) -> Decision | None:
        """Return the decision if it is known and may be used; the fast path of every request."""
        now = self._clock()  # rule 2: read at every use, after the request arrived
        return self._cache.get(api_key.digest, sendable_origin(origin), now) if self._holder.is_live(now) else None

    async def validate(self, api_key: ApiKey | str, origin: str | None = None) -> Decision:
        """Return whether the key may be used, and from the value of an `Origin` header: None for a request without.

        Lookups that come while calls are under way share the next one, and equal ones their place in it. Raises
        KeyServiceUnavailableError, which is never cached, when there is no verdict within 2 s or too many wait already.
        """
        if isinstance(api_key, str):
            parsed = ApiKey.parse(api_key)
            if parsed is None:
                return INVALID_KEY
            api_key = parsed
        origin = sendable_origin(origin)
        self.start()
        decision = self.cached(api_key, origin)
        if decision is not None:
            return decision
        loop = asyncio.get_running_loop()
        if self._watching is not None and self._watching.get_loop() is not loop:
            raise RuntimeError("this validator belongs to another event loop: make one for each")
        give_up_at = loop.time() + CALL_SECONDS_MAX
        for _ in range(_JOINS_MAX):
            asked = self._lookups.get(api_key.digest, origin)
            if asked is None or not self.has_lease:
                break
            await self._wait(asked.join(), give_up_at)
            # Rule 4: its call may have begun before this request, and before a change that this request must see. The
            # response counts here only if it was fit to be cached.
            decision = self.cached(api_key, origin)
            if decision is not None:
                return decision
        return await self._ask(api_key, origin, give_up_at)

    async def require(self, api_key: ApiKey | str, origin: str | None = None) -> Decision:
        """Return whose key it is, if it may be used, and from this origin; raise KeyRefusedError, or as `validate`."""
        decision = await self.validate(api_key, origin)
        if not decision:
            raise KeyRefusedError(decision)
        return decision

    async def _wait(self, told: asyncio.Future[Decision], give_up_at: float) -> Decision:
        """Return what is told until then; a timer costs a miss less than `asyncio.timeout` does."""
        timer = told.get_loop().call_at(give_up_at, _give_up, told)
        try:
            return await told
        finally:
            timer.cancel()

    async def _ask(self, api_key: ApiKey, origin: str | None, give_up_at: float) -> Decision:
        lookup = PendingLookup(api_key, origin, is_known=self._cache.knows(api_key.digest, origin))
        self._lookups.put(lookup)
        try:
            return await self._wait(lookup.join(), give_up_at)
        finally:
            self._lookups.forget(lookup)

    async def _look_up(self, lookups: list[PendingLookup]) -> Sequence[Response | KeyServiceUnavailableError]:
        """Ask about all in one call, cache what may be reused, note how it went: badly without a single verdict."""
        sent_at, epoch = self._clock(), self._holder.epoch
        try:
            outcomes = await self._client.validate([(lookup.api_key, lookup.origin) for lookup in lookups])
        except KeyServiceUnavailableError as error:
            self._note(str(error))
            raise
        faults = []
        for lookup, outcome in zip(lookups, outcomes, strict=True):
            if isinstance(outcome, KeyServiceUnavailableError):
                faults.append(outcome)
            # Rule 4. The probe is to be asked anew each time.
            elif self._holder.may_keep(outcome.revision, outcome.epoch or epoch) and lookup.api_key is not _PROBE_KEY:
                self._cache.put(lookup.api_key.digest, lookup.origin, outcome, sent_at)
        self._note(str(faults[0]) if len(faults) == len(outcomes) else None)
        return outcomes

    def _note(self, fault: str | None) -> None:
        if fault is not None and (self.fault is None and not self._closed):
            _log.warning("key_service_lost" if self._reached else "key_service_not_reached", reason=fault)
        elif fault is None and (self.fault is not None or not self._reached):
            _log.info("key_service_reached")
        self.fault = fault
        self._reached = self._reached or fault is None
        self._outcome_at = self._clock()

    async def state(self) -> KeyServiceState:
        """Return how things stand, after at most a second: without recent traffic, a call finds out."""
        self.start()
        if self._clock() - self._outcome_at >= _PROBE_INTERVAL_SECONDS:
            await self._probe()
        if not self._reached:
            return KeyServiceState.NEVER_REACHED
        if self.fault is None:
            return KeyServiceState.OK if self.has_lease else KeyServiceState.NO_LEASE
        can_serve = self.has_lease and self._cache.has_live_keys(self._clock())
        return KeyServiceState.AWAY_CACHED if can_serve else KeyServiceState.AWAY

    async def _probe(self) -> None:
        """Have a call made, which notes how things stand."""
        give_up_at = asyncio.get_running_loop().time() + _PROBE_WAIT_SECONDS
        asked = self._lookups.get(_PROBE_KEY.digest, None)
        with suppress(KeyServiceUnavailableError):
            if asked is not None:
                await self._wait(asked.join(), give_up_at)
            else:
                await self._ask(_PROBE_KEY, None, give_up_at)

    async def close(self) -> None:
        """Release the lease, and end the connection and the calls under way: these raise KeyServiceUnavailableError."""
        self._closed = True
        self._lookups.refuse()
        self._watcher.leave()
        if self._watching is not None:
            await asyncio.wait([self._watching], timeout=_RELEASE_SECONDS_MAX)
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._lookups.close()
        await self._client.close()


def _give_up(told: asyncio.Future[Any]) -> None:
    if not told.done():
        told.set_exception(KeyServiceUnavailableError(f"there was no verdict within {CALL_SECONDS_MAX:g} s"))
