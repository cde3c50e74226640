"""Live tail: server-sent events of what arrives in a project. Used by `page`; `app` closes it.

One event a poll that found something, with the markup of the entries, newest first; its id is the cursor where the next
poll begins, so a browser that connects again misses nothing. Streams are few, each polls once a second, and a client
that does not read is disconnected.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import structlog
from aiohttp import web

from authsvc.runtime.environment import ConfigurationError
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter, LogRow
from httpbridge.log_store.tail import Cursor, LogTail

_RETRY_MILLISECONDS = 2000
_DISPLACED = "event: displaced\ndata: \n\n"
"""Says that the session has a newer stream instead, so that the page does not take it back."""

_log = structlog.get_logger("httpbridge.dashboard")


class StreamLimits(msgspec.Struct, frozen=True):
    """Bounds of live tails."""

    streams_max: int = 32
    """And one more for a moment: one that was displaced and has not ended yet."""
    streams_of_session_max: int = 8
    """Whoever opens one more ends the oldest of the same session, and nobody else's."""
    poll_seconds: float = 1.0
    heartbeat_seconds: float = 15.0
    """Between two signs of life: shorter than proxies wait; a reader who went away is noticed as fast."""
    event_characters_max: int = 1_000_000
    """Of the markup in one event: a hundred usual entries are a tenth of that, the longest ones eight times as much."""
    write_seconds_max: float = 10.0
    """A reader who takes nothing for so long is disconnected."""


STREAM_LIMITS = StreamLimits()


class _Stream:
    """An open stream, and what ends it."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.ending = asyncio.Event()
        self.is_displaced = False
        self._transport = transport

    def displace(self) -> None:
        """End it: with a word to a reader who has taken everything so far, and at once where one has not."""
        self.is_displaced = True
        self.ending.set()
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._transport.abort()


class LogStreams:
    """All open streams. `session_id` is that of a request as long as its session holds; `monotonic` is in seconds.

    `markup` makes an entry's, escaped.
    """

    def __init__(
        self,
        store: ReadStore,
        *,
        session_id: Callable[[web.Request], str | None],
        markup: Callable[[LogRow], str],
        monotonic: Callable[[], float],
        limits: StreamLimits = STREAM_LIMITS,
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._markup = markup
        self._monotonic = monotonic
        self._limits = limits
        self._streams: dict[_Stream, str | None] = {}
        """With their sessions, the oldest first."""
        self._is_closing = False

    @property
    def open(self) -> int:
        return len(self._streams)

    async def close(self) -> None:
        """Ask all streams to end; browsers connect again by themselves."""
        self._is_closing = True
        for stream in self._streams:
            stream.ending.set()

    async def serve(self, request: web.Request, selection: LogFilter, after: Cursor) -> web.StreamResponse:
        """Respond with the entries that arrive after it, until the reader, the session or the dashboard is gone.

        503 when there are too many streams.
        """
        session_id = self._session_id(request)
        stream = _Stream(request.transport)
        displaced = self._to_displace(session_id)
        if self.open - (displaced is not None) >= self._limits.streams_max:
            return web.Response(status=503, headers={"Retry-After": "5"}, text="Too many live tails are open.")
        if displaced is not None:
            displaced.displace()
        if self._is_closing:
            stream.ending.set()
        self._streams[stream] = session_id
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
            await response.prepare(request)
            with suppress(ConnectionError):  # the reader went away
                await self._follow(request, response, LogTail(self._store, selection, after), stream)
            return response
        except (TimeoutError, ConfigurationError) as error:
            reason = "its reader takes nothing" if isinstance(error, TimeoutError) else str(error)
            _log.info("live_tail_given_up", reason=reason)
            if request.transport is not None:
                request.transport.abort()
            return response
        finally:
            del self._streams[stream]

    def _to_displace(self, session_id: str | None) -> _Stream | None:
        """Return the session's oldest stream where it has as many as it may."""
        of_session = [one for one, whose in self._streams.items() if whose == session_id and not one.is_displaced]
        return of_session[0] if len(of_session) >= self._limits.streams_of_session_max else None

    async def _follow(self, request: web.Request, response: web.StreamResponse, tail: LogTail, stream: _Stream) -> None:
        await self._write(response, f"retry: {_RETRY_MILLISECONDS}\n\n")
        written_at = self._monotonic()
        is_lost = False
        while not stream.ending.is_set():
            if self._session_id(request) is None:
                return  # by the cookie it began with: the browser comes again with its own, or hears that it is over
            event = ""
            try:
                arrivals = await tail.poll()
            except (StoreUnavailableError, StoreSetupError) as error:
                if not is_lost:
                    event = f"event: trouble\ndata: {_json(str(error))}\n\n"
                is_lost = True
            else:
                if arrivals.rows or arrivals.is_gap or is_lost:
                    html, is_cut = self._html(arrivals.rows)
                    data = _json({"html": html, "is_gap": arrivals.is_gap or is_cut})
                    event = f"id: {arrivals.cursor}\ndata: {data}\n\n"
                elif self._monotonic() - written_at >= self._limits.heartbeat_seconds:
                    event = f"id: {arrivals.cursor}\n\n"  # without data it moves the cursor, and nothing else
                is_lost = False
            if event:
                await self._write(response, event)
                written_at = self._monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.ending.wait(), self._limits.poll_seconds)
        if stream.is_displaced:
            await self._write(response, _DISPLACED)

    def _html(self, rows: Sequence[LogRow]) -> tuple[str, bool]:
        """Return the markup of the newest, as many as an event takes, and whether that leaves any out."""
        parts: list[str] = []
        room = self._limits.event_characters_max
        for row in reversed(rows):
            part = self._markup(row)
            room -= len(part)
            if parts and room < 0:
                return "".join(parts), True
            parts.append(part)
        return "".join(parts), False

    async def _write(self, response: web.StreamResponse, text: str) -> None:
        async with asyncio.timeout(self._limits.write_seconds_max):
            await response.write(text.encode())


def _json(value: object) -> str:
    """Write JSON in one line, as a line break would end the event's field."""
    return msgspec.json.encode(value).decode()
