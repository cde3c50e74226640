"""What becomes of callers that are refused, and of those that do not read their responses. No gRPC.

gRPC counts a call among its connection's until the caller has read how it ended, however long that takes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog

from authsvc.api.callers import Caller
from authsvc.api.limits import CallLimits
from authsvc.runtime.networks import Networks, Places, address_group
from authsvc.runtime.tally import ADDRESSES_MAX, Tally

_log = structlog.get_logger("authsvc")

_CLOSING_MAX = 1000


class Pace:
    """Gives each address so many turns a second: the first second's at once, each further one in its time."""

    def __init__(self, per_second: float, delay_seconds_max: float) -> None:
        self._step_seconds = 1 / per_second
        self._delay_seconds_max = delay_seconds_max
        self._taken_until: OrderedDict[str, float] = OrderedDict()
        """By address; the one that asked last is last."""

    def delay_seconds(self, address: str, now: float) -> float | None:
        """Take a turn; return how long from `now` it is, or None, and take none, where that is too long."""
        group = address_group(address)
        taken_until = max(self._taken_until.get(group, now), now)
        delay = taken_until + self._step_seconds - now - 1.0
        if delay > self._delay_seconds_max:
            return None
        self._taken_until[group] = taken_until + self._step_seconds
        self._taken_until.move_to_end(group)
        if len(self._taken_until) > ADDRESSES_MAX:
            self._taken_until.popitem(last=False)
        return max(0.0, delay)


class Refusals:
    """Bounds refusals, slows them down, logs them, and closes the connections of those that take none."""

    def __init__(
        self,
        limits: CallLimits,
        trusted_proxies: Networks,
        monotonic: Callable[[], float],
        close: Callable[[str], None],
    ) -> None:
        """`close` closes a connection, as gRPC names it."""
        self._limits = limits
        self._monotonic = monotonic
        self._close = close
        self._places = {has_token: Places(limits.refused_calls_max, trusted_proxies) for has_token in (True, False)}
        self._pace = Pace(limits.turns_per_second, limits.turn_seconds_max)
        self._closing: OrderedDict[str, None] = OrderedDict()
        """The connections that were closed last: what gRPC has read of them still comes, call by call."""
        self._refused = Tally(monotonic, lambda **fields: _log.warning("calls_refused", **fields))
        self._closed = Tally(monotonic, lambda **fields: _log.warning("connections_closed", **fields))

    def flush(self) -> None:
        """Log what is left to say."""
        self._refused.flush()
        self._closed.flush()

    def is_closing(self, caller: Caller) -> bool:
        """Whether nobody waits for an answer on a caller's connection any more."""
        return caller.connection in self._closing

    @asynccontextmanager
    async def refusing(self, caller: Caller, *, has_token: bool, method: str, status: str) -> AsyncIterator[None]:
        """Hold a place while a caller is refused, whose turn this waits for. One too many loses its connection."""
        self._refused.add(caller.address, method=method, status=status)
        places = self._places[has_token]
        if not places.take(caller.address):
            self.close(caller, "too many calls of it are being refused")
            if caller.is_proxied:  # whose connection stays open: its calls wait instead
                await asyncio.sleep(self._limits.turn_seconds_max)
            yield
            return
        try:
            if not has_token:
                await self.turn(caller)
            yield
        finally:
            places.release(caller.address)

    async def turn(self, caller: Caller) -> None:
        """Wait for the turn of a caller without a token. One that asks for too many loses its connection."""
        seconds = self._pace.delay_seconds(caller.address, self._monotonic())
        if seconds is None:
            self.close(caller, "it asks for too much without a token")
            seconds = self._limits.turn_seconds_max
        if seconds:
            await asyncio.sleep(seconds)

    @contextmanager
    def sending(self, caller: Caller) -> Iterator[None]:
        """Give a caller some seconds to take what it is sent meanwhile."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._limits.untaken_seconds, self.close, caller, "it does not read its responses")
        try:
            yield
        finally:
            timer.cancel()

    def close(self, caller: Caller, reason: str) -> None:
        """Close a caller's connection, unless it is a proxy's, which others share."""
        if not caller.is_proxied:
            self._closed.add(caller.address, reason=reason)
            self._close(caller.connection)
            self._closing[caller.connection] = None
            if len(self._closing) > _CLOSING_MAX:
                self._closing.popitem(last=False)
