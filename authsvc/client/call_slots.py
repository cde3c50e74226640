"""Who may call the key service now: a bounded number of calls at once, and a bounded queue behind them.

`validator` takes a turn for each call. Whoever has no key can send any number of well-formed ones, each of which is a
call, so a part of the slots is kept for keys that are known to be good, and these wait in a queue of their own, which
goes first.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from authsvc.client.verdicts import KeyServiceUnavailableError

WAIT_SECONDS_MAX = 1.0
"""For a slot, before the call and its own deadline: short enough for a client, and several calls long."""

_KEPT_FRACTION = 4
"""One in so many slots is for keys that are known to be good."""

_WAITING_PER_SLOT_MAX = 4
"""In each of the two queues. A call takes some milliseconds, so these have their turn well within the wait."""

_LOG_INTERVAL_SECONDS = 10.0

_log = structlog.get_logger("authsvc.client")


class Turn:
    """A slot, or a place in the queue for one."""

    __slots__ = ("given", "is_known")

    def __init__(self, is_known: bool) -> None:
        self.is_known = is_known
        self.given: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def has_slot(self) -> bool:
        """Whether it holds a slot."""
        return self.given.done() and not self.given.cancelled()


class CallSlots:
    """At most `slots_max` calls at once; `clock` is in seconds."""

    def __init__(self, slots_max: int, clock: Callable[[], float]) -> None:
        self._slots_max = slots_max
        self._strangers_max = slots_max - slots_max // _KEPT_FRACTION
        self._waiting_max = slots_max * _WAITING_PER_SLOT_MAX
        self._clock = clock
        self._taken = 0
        self._taken_by_strangers = 0
        self._known: deque[Turn] = deque()
        self._strangers: deque[Turn] = deque()
        self._logged_at = float("-inf")

    def take(self, *, is_known: bool) -> Turn:
        """Return a turn, to be waited for, and to be released in any case; `is_known`: the key was good lately.

        Raises KeyServiceUnavailableError when too many wait already.
        """
        queue = self._known if is_known else self._strangers
        if len(queue) >= self._waiting_max:
            raise self._refusal()
        turn = Turn(is_known)
        queue.append(turn)
        self._give()
        return turn

    async def wait(self, turn: Turn) -> None:
        """Return once the turn has its slot; raise KeyServiceUnavailableError when that takes too long."""
        if turn.has_slot:
            return
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await turn.given
        except TimeoutError:
            raise self._refusal() from None

    def release(self, turn: Turn) -> None:
        """Give the slot, or the place in the queue, to the next."""
        if turn.has_slot:
            self._taken -= 1
            self._taken_by_strangers -= not turn.is_known
        turn.given.cancel()
        self._give()

    def _give(self) -> None:
        for queue in (self._known, self._strangers):
            while queue and (queue[0].given.done() or self._has_slot_for(queue[0])):
                turn = queue.popleft()
                if not turn.given.done():  # all wait equally long, so who gave up stands in front
                    turn.given.set_result(None)
                    self._taken += 1
                    self._taken_by_strangers += not turn.is_known

    def _has_slot_for(self, turn: Turn) -> bool:
        is_for_strangers = self._taken_by_strangers < self._strangers_max
        return self._taken < self._slots_max and (turn.is_known or is_for_strangers)

    def _refusal(self) -> KeyServiceUnavailableError:
        """Log it, once in a while: it may be a flood."""
        if self._clock() - self._logged_at >= _LOG_INTERVAL_SECONDS:
            self._logged_at = self._clock()
            _log.warning("key_service_calls_saturated", calls=self._taken)
        return KeyServiceUnavailableError(f"{self._taken} calls to the key service are under way already")
