"""What comes on one connection: parsed in turns by aiohttp's HTTP parser, and held within bounds until then.

Parsing, the bodies' streams and flow control are aiohttp's. Its version is locked, and the tests hold what is relied
upon.
"""

import asyncio
from collections import deque
from typing import TypeAlias

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from httpbridge.errors import MalformedRequestError, OverloadedError
from httpbridge.http import responses
from httpbridge.http.bodies import Budget
from httpbridge.http.fairness import Caller, Turns
from httpbridge.http.request import is_understood, parser_for
from httpbridge.http.responses import Response

_HEAD_BYTES_MAX = 64 * 1024
"""Of a whole head, and of what comes between two pieces of a body. Less is never refused; twice of it always is."""

_AHEAD_MAX = 2
"""Requests parsed ahead; beyond it what came is kept as it is."""

_PIECE_BYTES = 8 * 1024
"""Parsed at a time, and in one turn at the most of anything but bodies: half a millisecond where it is dearest, in
chunks of one byte. Where in a piece a head began is not known, so the first and the last of it are not counted."""

_SMALL_BYTES = 2 * 1024
"""Of a head, which are parsed at once: keeping them costs as much."""

Message: TypeAlias = tuple[RawRequestMessage | Response, StreamReader]
"""What was parsed, and its body; or the last response, to what is refused."""


class Inbound(BaseProtocol):
    """The receiving side of a connection: `_next` returns its requests, one after the other, each in its turn."""

    __slots__ = (
        "_arrival",
        "_charged_bytes",
        "_has_more",
        "_has_turn",
        "_head_bytes",
        "_held_budget",
        "_is_broken",
        "_is_waiting",
        "_payload",
        "_queue",
        "_turn_bytes",
        "_turns",
        "_unparsed",
        "caller",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, caller: Caller, turns: Turns, held_budget: Budget) -> None:
        super().__init__(loop, parser_for(self, loop))
        self._parser: HttpRequestParser
        self.caller = caller
        self._turns = turns
        self._held_budget = held_budget
        self._queue: deque[Message] = deque()
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the request that was parsed last, the only one of which anything can still come."""
        self._unparsed = b""
        """What came before its turn."""
        self._has_more = False
        """Whether something came that is not parsed, or the parser may have kept something back."""
        self._head_bytes = 0
        """Parsed since a head was whole or something of a body came: at least so much is kept by the parser."""
        self._charged_bytes = 0
        """Taken of the budget."""
        self._is_broken = False
        """What comes is discarded: it is not HTTP, or nobody knows where its next request begins."""
        self._has_turn = False
        self._is_waiting = False
        """For a turn."""
        self._turn_bytes = 0
        """Parsed in this turn, of anything but bodies."""
        self._arrival: asyncio.Future[None] | None = None
        """Done when a request has its turn, or the connection is lost; None while nobody waits for that."""

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

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on, if it was paused: aiohttp calls this at the end of every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        # Each of these refers to the connection: its memory does not wait for the garbage collector.
        self._is_broken = True
        del self._parser
        self._payload = EMPTY_PAYLOAD
        self._queue.clear()
        self._forget_unparsed()
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

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

    def _go_on(self) -> None:
        """Wait for a turn where there is something to do: a request to begin, or to parse up to one request ahead."""
        if self._is_waiting or self._has_turn:
            return
        has_request = bool(self._queue) and self._arrival is not None and not self._arrival.done()
        is_ahead = bool(self._queue) and self._payload.is_eof()
        if has_request or (self._has_more and not self._reading_paused and not is_ahead):
            self._is_waiting = True
            self._turns.wait(self.caller, self._begin_turn)

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

    def _may_parse(self) -> bool:
        return (
            not self._is_broken
            and not self._reading_paused
            and len(self._queue) < _AHEAD_MAX
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
            self._head_bytes = 0 if body_bytes else self._head_bytes + len(piece)
            if self._head_bytes > _HEAD_BYTES_MAX:
                self._refuse(responses.BAD_REQUEST)

    def _parse(self, data: bytes) -> bool:
        """Parse what came, one request after the other; return whether the head of one was whole.

        A request that is whole is in the queue before anything is parsed of the next, which may not be HTTP.
        """
        was_whole = self._payload.is_eof()
        is_head_whole = False
        messages, self._is_broken, _ = self._parser.feed_data(data)  # nothing follows a request for an upgrade
        while messages or not was_whole:
            was_whole = True
            if messages:
                is_head_whole = True
                if not is_understood(messages[0][0]):  # it came alone
                    raise MalformedRequestError
                self._queue += messages
                self._payload = messages[0][1]
            if self._is_broken or not self._payload.is_eof():
                break
            if len(self._queue) >= _AHEAD_MAX:
                self._has_more = True
                break
            messages, self._is_broken, _ = self._parser.feed_data(b"")
        return is_head_whole

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
        """Take what is held from the budget, or give back what is not any more; refuse it where too little is left."""
        held_bytes = len(self._unparsed) + self._head_bytes
        try:
            self._held_budget.take(held_bytes - self._charged_bytes, self.caller.name)
        except OverloadedError:
            self._refuse(responses.OVERLOADED)
        else:
            self._charged_bytes = held_bytes

    def _refuse(self, refusal: Response) -> None:
        """Discard what comes from now on, and respond so after the requests before it."""
        self._is_broken = True
        if not self._payload.is_eof():  # it will not go on, and nobody else tells its reader
            self._payload.set_exception(MalformedRequestError())
            self._payload.feed_eof()
        self._queue.append((refusal, EMPTY_PAYLOAD))
        self._forget_unparsed()

    def _forget_unparsed(self) -> None:
        self._unparsed = b""
        self._has_more = False
        self._head_bytes = 0
        self._charge()
