"""Whether a key may be used: cached verdicts first, then one call for all who ask at once.

The bridge's `authorizer` and other callers in Python use KeyValidator; it owns the
key client, the verdict cache and the calls on their way.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Self, TypeAlias

import structlog

from authsvc.client.call_slots import CallSlots, Turn
from authsvc.client.channel import ClientTls, FixedToken, TokenSource
from authsvc.client.environment import Address, Token
from authsvc.client.holder import Holder
from authsvc.client.key_client import KeyClient, sendable_origin
from authsvc.client.raw_key import Digest, RawKey
from authsvc.client.verdict_cache import VerdictCache
from authsvc.client.verdicts import INVALID_KEY, Answer, Decision, KeyServiceUnavailableError
from authsvc.client.watcher import Watcher

_PROBE_KEY = RawKey("dt_" + "0" * 24)
"""Well-formed and never issued, as far as 96 random bits can promise it."""
_PROBE_INTERVAL_SECONDS = 1.0
_PROBE_WAIT_SECONDS = 1.0  # a readiness check has a deadline of its own; the probe goes on for the next one

_GOODBYE_SECONDS_MAX = 2.0
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_Flight: TypeAlias = "asyncio.Task[Decision]"

_log = structlog.get_logger("authsvc.client")


def boot_clock() -> float:
    """Return seconds that also count while the machine is suspended, where the system has such a clock (rule 12)."""
    return time.clock_gettime(_BOOT_CLOCK)


class KeyServiceState(Enum):
    """How things stand with the key service."""

    NEVER_REACHED = auto()
    """It has not answered since this process started."""
    OK = auto()
    """It answers, and verdicts are cached under a live lease."""
    NO_LEASE = auto()
    """It answers, and there is no lease: each request asks."""
    AWAY_CACHED = auto()
    """It does not answer, and keys whose cached verdict lasts are still admitted."""
    AWAY = auto()


class KeyValidator:
    """Validates keys against one key service. Made and used in one event loop; `close` ends it.

    Verdicts are cached under the lease protocol (docs/watch-protocol.md): a key that was
    revoked is refused from the instant that Revoke returned. Without a live lease each
    request asks.
    """

    def __init__(
        self,
        address: Address | str,
        token: TokenSource | str,
        *,
        tls: ClientTls | None = None,
        name: str = "",
        cache: VerdictCache | None = None,
        calls_max: int = 256,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Nothing is connected before the first call, or `start`.

        `name` is a label for operators, by default the host and process id. `calls_max` bounds
        the calls under way at once; some more wait for a moment (see `call_slots`). Raises
        ConfigurationError when a TLS file cannot be used, ValueError for an address that is
        not HOST:PORT and for a token that cannot be sent.
        """
        address = Address.parse(address) if isinstance(address, str) else address
        token = FixedToken(Token.parse(token)) if isinstance(token, str) else token
        self._clock = clock
        self._cache = VerdictCache() if cache is None else cache  # one without verdicts is false
        self._client = KeyClient(address, token, tls, clock)
        self._holder = Holder(secrets.token_hex(16), name or f"{socket.gethostname()}:{os.getpid()}", self._cache)
        self._watcher = Watcher(self._holder, address, token, tls, clock)
        self._watching: asyncio.Task[None] | None = None
        self._slots = CallSlots(calls_max, clock)
        self._calls: set[_Flight] = set()
        self._flights: dict[tuple[Digest, str | None], _Flight] = {}
        self._probe: asyncio.Task[None] | None = None
        self._closed = False
        self._reached = False
        self._fault: str | None = None
        self._outcome_at = float("-inf")

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to watch, so that the first verdicts can be cached already."""
        if self._watching is None and not self._closed:
            self._watching = asyncio.create_task(self._watcher.run(), name="key service watcher")

    @property
    def has_lease(self) -> bool:
        """Whether cached verdicts may be used now."""
        return self._holder.is_live(self._clock())

    def cached(self, api_key: RawKey, origin: str | None = None) -> Decision | None:
        """Return the decision if it is known and may be used; the fast path of every request."""
        now = self._clock()  # rule 2: read at every use, after the request arrived
        return self._cache.get(api_key.digest, sendable_origin(origin), now) if self._holder.is_live(now) else None

    async def validate(self, api_key: RawKey | str, origin: str | None = None) -> Decision:
        """Return whether the key may be used, and from the value of an `Origin` header: None for a request without.

        Callers who ask for the same at once share one call, which goes on when one of
        them is cancelled. Raises KeyServiceUnavailableError when there is no verdict;
        that is never cached.
        """
        if isinstance(api_key, str):
            parsed = RawKey.parse(api_key)
            if parsed is None:
                return INVALID_KEY
            api_key = parsed
        origin = sendable_origin(origin)
        self.start()
        decision = self.cached(api_key, origin)
        if decision is not None:
            return decision
        shared = self._flights.get((api_key.digest, origin))
        if shared is not None and self.has_lease:
            await _landed(shared)
            # Rule 4: that call may have begun before this request, and before a change that this request must see.
            # Its answer counts here only if it was fit to be cached.
            decision = self.cached(api_key, origin)
            if decision is not None:
                return decision
        flight = self._take_off(api_key, origin)
        await _landed(flight)
        return flight.result()

    def _take_off(self, api_key: RawKey, origin: str | None) -> _Flight:
        if self._closed:
            raise KeyServiceUnavailableError("this validator is closed")
        route = (api_key.digest, origin)
        turn = self._slots.take(is_known=self._cache.knows(*route))
        flight = asyncio.create_task(self._ask(api_key, origin, turn))
        self._calls.add(flight)
        self._flights[route] = flight

        def land(landed: _Flight) -> None:
            self._slots.release(turn)
            self._calls.discard(landed)
            if self._flights.get(route) is landed:
                del self._flights[route]
            if not landed.cancelled():
                landed.exception()  # seen, even if everyone who asked has gone

        flight.add_done_callback(land)
        return flight

    async def _ask(self, api_key: RawKey, origin: str | None, turn: Turn) -> Decision:
        await self._slots.wait(turn)
        sent_at, epoch = self._clock(), self._holder.epoch
        answer = await self._call(api_key, origin)
        if self._holder.may_keep(answer.revision, answer.epoch or epoch):  # rule 4
            self._cache.put(api_key.digest, origin, answer, sent_at)
        return answer.decision

    async def _call(self, api_key: RawKey, origin: str | None) -> Answer:
        """Call, and note for `state` how it went."""
        try:
            answer = await self._client.validate(api_key, origin)
        except KeyServiceUnavailableError as error:
            self._note(str(error))
            raise
        self._note(None)
        return answer

    def _note(self, fault: str | None) -> None:
        if fault is not None and (self._fault is None and not self._closed):
            _log.warning("key_service_lost" if self._reached else "key_service_not_reached", reason=fault)
        elif fault is None and (self._fault is not None or not self._reached):
            _log.info("key_service_reached")
        self._fault = fault
        self._reached = self._reached or fault is None
        self._outcome_at = self._clock()

    @property
    def fault(self) -> str | None:
        """Why the key service gave no verdict at the last call, in one line; None when it did."""
        return self._fault

    async def state(self) -> KeyServiceState:
        """Return how things stand, after at most a second: without recent traffic, a call finds out."""
        self.start()
        if self._clock() - self._outcome_at >= _PROBE_INTERVAL_SECONDS and not self._closed:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._probe_once())
            await asyncio.wait([self._probe], timeout=_PROBE_WAIT_SECONDS)
            if self._probe.done() and not self._probe.cancelled():
                self._probe.result()
        if not self._reached:
            return KeyServiceState.NEVER_REACHED
        if self._fault is None:
            return KeyServiceState.OK if self.has_lease else KeyServiceState.NO_LEASE
        can_serve = self.has_lease and self._cache.has_live_keys(self._clock())
        return KeyServiceState.AWAY_CACHED if can_serve else KeyServiceState.AWAY

    async def _probe_once(self) -> None:
        try:
            await self._call(_PROBE_KEY, None)
        except KeyServiceUnavailableError:
            return  # noted

    async def close(self) -> None:
        """Say goodbye, end the calls under way, whose callers get KeyServiceUnavailableError, and the connection."""
        self._closed = True
        self._watcher.leave()
        if self._watching is not None:
            await asyncio.wait([self._watching], timeout=_GOODBYE_SECONDS_MAX)
        tasks: list[asyncio.Task[Any]] = [*self._calls]
        tasks += [task for task in (self._probe, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._client.close()


async def _landed(flight: _Flight) -> None:
    """Wait for a call; unlike awaiting the task itself, this leaves it alone when the caller is cancelled."""
    await asyncio.wait([flight])
    if flight.cancelled():
        raise KeyServiceUnavailableError("this validator is closed")
    if (error := flight.exception()) is not None:
        raise error
