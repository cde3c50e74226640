"""Whether a key may be used: cached verdicts first, then one call for all who ask at once.

The bridge's `authorizer` and other callers in Python use KeyValidator; it owns the
key client, the verdict cache and the calls on their way.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import TypeAlias

import structlog

from authsvc.client.channel import ClientTls, TokenSource
from authsvc.client.environment import Address
from authsvc.client.key_client import KeyClient, sendable_origin
from authsvc.client.raw_key import Digest, RawKey
from authsvc.client.verdict_cache import INVALID_KEY, VerdictCache
from authsvc.client.verdicts import Answer, Decision, KeyServiceUnavailableError

_PROBE_KEY = RawKey("dt_" + "0" * 24)
"""Well-formed and never issued, as far as 96 random bits can promise it."""
_PROBE_INTERVAL_SECONDS = 1.0
_PROBE_WAIT_SECONDS = 1.0  # a readiness check has a deadline of its own; the probe goes on for the next one

_Flight: TypeAlias = "asyncio.Task[Decision]"

_log = structlog.get_logger("authsvc.client")


class KeyServiceState(Enum):
    """How things stand with the key service."""

    NEVER_REACHED = auto()
    """It has not answered since this process started."""
    OK = auto()
    AWAY_CACHED = auto()
    """It does not answer, and keys whose cached verdict lasts are still admitted."""
    AWAY = auto()


class KeyValidator:
    """Validates keys against one key service. Made and used in one event loop; `close` ends it."""

    def __init__(
        self,
        client: KeyClient,
        cache: VerdictCache,
        monotonic: Callable[[], float],
        calls_max: int = 256,
    ) -> None:
        """Take over `client`, which `close` closes. `calls_max` bounds the calls under way at once."""
        self._client = client
        self._cache = cache
        self._monotonic = monotonic
        self._calls_max = calls_max
        self._flights: dict[tuple[Digest, str | None], _Flight] = {}
        self._probe: asyncio.Task[None] | None = None
        self._closed = False
        self._reached = False
        self._fault: str | None = None
        self._outcome_at = float("-inf")

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, address: Address, token: TokenSource, tls: ClientTls | None = None
    ) -> AsyncIterator["KeyValidator"]:
        """Yield a validator with the usual limits, for a service of one's own.

        Raises ConfigurationError when a TLS file cannot be used. It connects at the first call.
        """
        validator = cls(KeyClient(address, token, tls, time.monotonic), VerdictCache(), time.monotonic)
        try:
            yield validator
        finally:
            await validator.close()

    def cached(self, api_key: RawKey, origin: str | None = None) -> Decision | None:
        """Return the decision if it is known and has not expired; the fast path of every request."""
        return self._cache.get(api_key.digest, sendable_origin(origin), self._monotonic())

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
        decision = self._cache.get(api_key.digest, origin, self._monotonic())
        if decision is not None:
            return decision
        flight = self._flights.get((api_key.digest, origin)) or self._take_off(api_key, origin)
        await asyncio.wait([flight])  # unlike awaiting the flight itself, this leaves it alone when we are cancelled
        if flight.cancelled():
            raise KeyServiceUnavailableError("this validator is closed")
        return flight.result()

    def _take_off(self, api_key: RawKey, origin: str | None) -> _Flight:
        if self._closed:
            raise KeyServiceUnavailableError("this validator is closed")
        if len(self._flights) >= self._calls_max:
            raise KeyServiceUnavailableError(f"{self._calls_max} calls to the key service are under way already")
        route = (api_key.digest, origin)
        flight = asyncio.create_task(self._ask(api_key, origin))
        self._flights[route] = flight

        def land(landed: _Flight) -> None:
            del self._flights[route]
            if not landed.cancelled():
                landed.exception()  # seen, even if everyone who asked has gone

        flight.add_done_callback(land)
        return flight

    async def _ask(self, api_key: RawKey, origin: str | None) -> Decision:
        sent_at = self._monotonic()
        answer = await self._call(api_key, origin)
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
        self._outcome_at = self._monotonic()

    @property
    def fault(self) -> str | None:
        """Why the key service gave no verdict at the last call, in one line; None when it did."""
        return self._fault

    async def state(self) -> KeyServiceState:
        """Return how things stand, after at most a second: without recent traffic, a call finds out."""
        if self._monotonic() - self._outcome_at >= _PROBE_INTERVAL_SECONDS and not self._closed:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._probe_once())
            await asyncio.wait([self._probe], timeout=_PROBE_WAIT_SECONDS)
            if self._probe.done() and not self._probe.cancelled():
                self._probe.result()
        if self._fault is None and self._reached:
            return KeyServiceState.OK
        if not self._reached:
            return KeyServiceState.NEVER_REACHED
        return KeyServiceState.AWAY_CACHED if self._cache.has_live_keys(self._monotonic()) else KeyServiceState.AWAY

    async def _probe_once(self) -> None:
        try:
            await self._call(_PROBE_KEY, None)
        except KeyServiceUnavailableError:
            return  # noted

    async def close(self) -> None:
        """End the calls under way, whose callers get KeyServiceUnavailableError, and the connection."""
        self._closed = True
        tasks: list[asyncio.Task[Decision] | asyncio.Task[None]] = [*self._flights.values()]
        if self._probe is not None:
            tasks.append(self._probe)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._client.close()
