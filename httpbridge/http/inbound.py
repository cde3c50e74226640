"""What comes on one connection, and when it is parsed: in turns, and held within bounds until then."""

import asyncio

from httpbridge.errors import OverloadedError
from httpbridge.http import responses
from httpbridge.http.bodies import Budget
from httpbridge.http.fairness import Caller, Turns
from httpbridge.http.parsing import AHEAD_MAX, Message, RequestParser
from httpbridge.http.responses import Response

_PIECE_BYTES = 8 * 1024
"""Parsed at a time, and in one turn at the most of anything but bodies: half a millisecond where it is dearest, in
chunks of one byte. Where in a piece a head began is not known, so the first and the last of it are not counted."""

_SMALL_BYTES = 2 * 1024
"""Of a head, which are parsed at once: keeping them costs as much."""


class Inbound(RequestParser):
    """The receiving side of a connection: `_next` returns its requests, one after the other, each in its turn."""

    __slots__ = (
        "_arrival",
        "_charged_bytes",
        "_has_turn",
        "_held_budget",
        "_is_half_closed",
        "_is_waiting",
        "_turn_bytes",
        "_turns",
        "_unparsed",
        "caller",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, caller: Caller, turns: Turns, held_budget: Budget) -> None:
        super().__init__(loop)
        self.caller = caller
        self._turns = turns
        self._held_budget = held_budget
        self._unparsed = b""
        """What came before its turn."""
        self._has_turn = False
        self._is_waiting = False
        """For a turn."""
        self._turn_bytes = 0
        """Parsed in this turn, of anything but bodies."""
        self._charged_bytes = 0
        """Taken of the budget."""
        self._arrival: asyncio.Future[None] | None = None
        """Done when a request has its turn, or the connection is lost; None while nobody waits for that."""
        self._is_half_closed = False

    # What the event loop and aiohttp's streams call.

    def data_received(self, data: bytes) -> None:
        """Parse what came, or keep it until the caller has a turn again.

        What cannot be parsed gets a 400, and what follows it is discarded.
        """
        if self._is_broken:
            return
        if not data:  # by `resume_reading`: the parser may go on with what it kept back
            self._has_more = True
            self._go_on()
        elif self._is_waiting or self._has_more or not self._has_turn_now():
            if len(data) <= _SMALL_BYTES and not self._has_more and not self._queue and self._payload.is_eof():
                self._take_in(data)
            else:
                self._keep(data)
            self._go_on()
        else:
            self._take_in(data)
            if not self._wake():
                self._loop.call_soon(self._end_turn)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of what came."""
        super().connection_lost(exc)
        self._forget_unparsed()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    # What the serving side calls.

    async def _next(self) -> Message | None:
        """Return what was parsed next, in its turn, or None when the connection is lost."""
        while self.transport is not None:
            self._arrival = self._loop.create_future()
            if self._queue or self._has_more:
                self._go_on()
            await self._arrival
            self._arrival = None
            message = self._queue.popleft() if self._queue else None
            self._end_turn()
            if message is not None:
                return message
        return None

    def _has_pending(self) -> bool:
        """Return whether something came that no request was made of yet, but for part of a head."""
        return bool(self._queue) or self._has_more

    def _end_turn(self) -> None:
        """Let another have its turn, and wait for the next where there is something to parse."""
        if self._has_turn:
            self._has_turn = False
            self._turns.end(self.caller)
        if self._queue or self._has_more:
            self._go_on()

    def _turn_parsed(self) -> None:
        """Be told that what had waited was parsed, as far as this turn goes; for the serving side."""

    def _head_is_partial(self) -> None:
        """Be told that part of a head has come; for the serving side."""

    # Turns.

    def _go_on(self) -> None:
        """Wait for a turn where there is something to do: a request to begin, or to parse up to one request ahead."""
        if self._is_waiting or self._has_turn:
            return
        if self._queue and self._is_awaited():
            is_wanted = True
        else:
            is_wanted = self._has_more and not self._reading_paused and not (self._queue and self._payload.is_eof())
        if is_wanted:
            self._is_waiting = True
            self._turns.wait(self.caller, self._begin_turn)

    def _is_awaited(self) -> bool:
        return self._arrival is not None and not self._arrival.done()

    def _has_turn_now(self) -> bool:
        """Take a turn where there is none; return whether there is one in which something may be parsed."""
        if self._has_turn:
            return self._may_parse()
        if not self._turns.take(self.caller):
            return False
        self._has_turn = True
        self._turn_bytes = 0
        return True

    def _begin_turn(self) -> None:
        self._is_waiting = False
        self._has_turn = True
        self._turn_bytes = 0
        if self._has_more and not self._is_broken:
            data, self._unparsed = self._unparsed, b""
            self._take_in(b"")  # what the parser kept back
            if data and self._may_parse():
                self._take_in(data)
            elif data:
                self._keep(data)
            if not self._unparsed and self._buffer_paused:
                self._resume_reading_for_buffer()
            self._turn_parsed()
        if not self._wake():
            self._end_turn()

    def _wake(self) -> bool:
        """Hand a request over to who waits for it, with the turn; return whether there was one."""
        if not self._queue or self._arrival is None or self._arrival.done():
            return False
        self._arrival.set_result(None)
        return True

    # Parsing.

    def _may_parse(self) -> bool:
        return (
            not self._is_broken
            and not self._reading_paused
            and len(self._queue) < AHEAD_MAX
            and self._turn_bytes <= _PIECE_BYTES
        )

    def _take_in(self, data: bytes) -> None:
        """Parse what came, in pieces, as far as this turn goes; keep the rest."""
        self._has_more = False
        if len(data) <= _PIECE_BYTES:
            self._take_in_piece(data)
        else:
            for start in range(0, len(data), _PIECE_BYTES):
                if start and not self._may_parse():
                    self._keep(data[start:])
                    break
                self._take_in_piece(data[start : start + _PIECE_BYTES])
        if self._is_broken:
            self._forget_unparsed()
        elif self._charged_bytes or self._head_bytes:
            self._charge()
            self._head_is_partial()

    def _take_in_piece(self, piece: bytes) -> None:
        body_bytes = self._payload.total_bytes
        try:
            is_head_whole = self._parse(piece)
        except Exception:  # noqa: BLE001 - the parser raises more than it says, with what it read in the text
            self._refuse(responses.BAD_REQUEST)
            return
        if is_head_whole:
            self._head_bytes = 0
            self._turn_bytes += len(piece)
        elif piece:
            body_bytes = self._payload.total_bytes - body_bytes
            self._turn_bytes += len(piece) - body_bytes
            self._count_head(0 if body_bytes else len(piece))

    # What is held.

    def _keep(self, data: bytes) -> None:
        """Keep what came until its turn; the connection is not read meanwhile, if that is much."""
        if self._is_broken:
            return
        self._unparsed += data
        self._has_more = True
        if len(self._unparsed) > _PIECE_BYTES and not self._buffer_paused:
            self._pause_reading_for_buffer()
        self._charge()

    def _charge(self) -> None:
        """Take what is held from the budget; where there is not enough left, refuse it."""
        held_bytes = len(self._unparsed) + self._head_bytes
        more_bytes = held_bytes - self._charged_bytes
        if more_bytes > 0:
            try:
                self._held_budget.take(more_bytes, self.caller.name)
            except OverloadedError:
                self._refuse(responses.OVERLOADED)
                return
        elif more_bytes < 0:
            self._held_budget.release(-more_bytes, self.caller.name)
        self._charged_bytes = held_bytes

    def _refuse(self, refusal: Response) -> None:
        super()._refuse(refusal)
        self._forget_unparsed()

    def _forget_unparsed(self) -> None:
        self._unparsed = b""
        self._has_more = False
        self._head_bytes = 0
        self._charge()
