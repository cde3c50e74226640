"""Keeps a Watch stream to the key service open, so that the holder has a lease and hears of every change."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from authsvc.client.channel import ClientTls, TokenSource, authorization, open_channel
from authsvc.client.holder import Holder, StreamBrokenError
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.library_logging import EventLogger, traceback_without_text
from authsvc.v1 import key_service_pb2 as pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub

_BACK_OFF_SECONDS_MIN = 0.1
_BACK_OFF_SECONDS_MAX = 2.0
"""Rule 6: so that a lease is back within seconds, however long the service was away."""
_UNANSWERED_MAX = 4
"""Keep-alives on their way: under a burst of changes the next acknowledgement waits for a lease, and covers several."""
_RELEASE_SECONDS_MAX = 1.0

_log = EventLogger()


class Watcher:
    """One holder's connection. Made and used in one event loop; `run` is its life."""

    def __init__(
        self, holder: Holder, address: Address, token: TokenSource, tls: ClientTls | None, clock: Callable[[], float]
    ) -> None:
        """`clock` is in seconds, never set back, and counts while the machine is suspended."""
        self._holder = holder
        self._address = address
        self._token = token
        self._tls = tls
        self._clock = clock
        self._leaving = asyncio.Event()
        self._release_message: KeepAlive | None = None
        self._owes_release = False
        """The service may have a lease of ours, for which revocations wait, and has not said that it took the release.

        From the first keep-alive on: it may be committed though its response was lost, and outlasts the lease by the
        margin.
        """
        self._was_live = False
        self._lease_end: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Watch until cancelled or `leave`, connecting again and again. The release is sent even when cancelled."""
        try:
            await self._watch_again_and_again()
            if self._owes_release:
                await self._try(self._release)
        except asyncio.CancelledError:
            if not self._leaving.is_set():
                self.leave()
                if self._owes_release:
                    await self._try(self._release)
            raise
        finally:
            if self._lease_end is not None:
                self._lease_end.cancel()

    async def _watch_again_and_again(self) -> None:
        back_off_seconds = _BACK_OFF_SECONDS_MIN
        while not self._leaving.is_set():
            lease_before = self._holder.lease_ends_at
            await self._try(self._watch)
            if self._holder.lease_ends_at > lease_before:
                back_off_seconds = _BACK_OFF_SECONDS_MIN
            # Jitter, so that the holders of a service that restarts do not all come at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(back_off_seconds * random.uniform(0.5, 1.0)):  # noqa: S311
                    await self._leaving.wait()
            back_off_seconds = min(back_off_seconds * 2, _BACK_OFF_SECONDS_MAX)

    async def _try(self, serve: Callable[[Any], Awaitable[None]]) -> None:
        """Open a stream and let it take its course; whatever ends it, another may follow."""
        try:
            async with open_channel(self._address, self._tls) as channel:
                # Rule 6: without a deadline.
                call: Any = KeyServiceStub(channel).Watch(metadata=authorization(self._token.read()))
                try:
                    await serve(call)
                finally:
                    call.cancel()
            reason = "the key service ended the stream"
        except grpc.aio.AioRpcError as error:
            reason = error.code().name
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # what is cached is of a history that is no more
                self._holder.forget()
                self._note()
        except (StreamBrokenError, ConfigurationError, KeyServiceUnavailableError, TimeoutError) as error:
            reason = str(error)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            reason = "the stream ended"  # just before it was written to, or before gRPC had opened it
        except Exception as error:  # noqa: BLE001 - without a watcher there would never be a lease again
            reason = type(error).__qualname__
            _log.error("watch_failed", error=reason, traceback=traceback_without_text(error))
        self._token.forget()
        _log.debug("watch_ended", reason=reason)

    def leave(self) -> None:
        """Use no cached verdict from here on, and release the lease, if need be on a new stream; `run` then ends."""
        if not self._leaving.is_set():
            self._release_message = self._holder.release()
            self._leaving.set()

    def _note(self) -> None:
        """Log when a lease begins and when it is over, which a timer tells in time; nothing else depends on it."""
        now = self._clock()
        is_live = self._holder.is_live(now)
        if self._lease_end is not None:
            self._lease_end.cancel()
            self._lease_end = None
        if is_live:
            left_seconds = self._holder.lease_ends_at - now
            self._lease_end = asyncio.get_running_loop().call_later(left_seconds, self._note)
        if is_live and not self._was_live:
            _log.info("lease_granted", holder=self._holder.holder_id)
        elif self._was_live and not is_live and not self._leaving.is_set():
            _log.warning("lease_lost")
        self._was_live = is_live

    async def _watch(self, call: Any) -> None:
        """Serve one stream until it ends."""
        stream, keep_alive = self._holder.open(self._clock())
        leaving = asyncio.create_task(self._leaving.wait())
        reading: asyncio.Task[Any] | None = None
        tasks: set[asyncio.Task[Any]] = {leaving}
        try:
            await self._send(call, keep_alive)
            reading = asyncio.create_task(call.read())
            tasks.add(reading)
            is_behind = False
            while not leaving.done():
                now = self._clock()
                if now >= self._holder.give_up_at():  # looked at in every round: changes may come without leases
                    raise TimeoutError("no lease in time")
                if now >= self._holder.renew_at() or (is_behind and self._holder.unanswered < _UNANSWERED_MAX):
                    is_behind = False
                    await self._send(call, self._holder.renew(now))
                until = min(self._holder.renew_at(), self._holder.give_up_at())
                await asyncio.wait(tasks, timeout=max(0.0, until - now), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    if (response := reading.result()) is grpc.aio.EOF:
                        return
                    is_behind = self._holder.receive(stream, response) or is_behind
                    self._note()
                    tasks.discard(reading)
                    reading = asyncio.create_task(call.read())
                    tasks.add(reading)
            await self._release(call, reading)
        finally:
            await _end(tasks)
            # An error that was read holds this frame. If this held the error too, the connection would stay until the
            # next collection.
            reading = None
            tasks.clear()

    async def _send(self, call: Any, keep_alive: KeepAlive) -> None:
        self._owes_release = True
        try:
            async with asyncio.timeout(max(0.0, self._holder.give_up_at() - self._clock())):
                await call.write(_request(keep_alive))
        except TimeoutError:
            raise TimeoutError("no connection in time") from None

    async def _release(self, call: Any, reading: "asyncio.Task[Any] | None" = None) -> None:
        if self._release_message is None:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS_MAX):
                await call.write(_request(self._release_message))
                # The service ends the stream when the release is committed.
                while await (reading or call.read()) is not grpc.aio.EOF:
                    reading = None
        except TimeoutError:
            self._owes_release = False  # whoever stops has no time for a second try
            raise TimeoutError("no response to the release") from None
        finally:
            reading = None  # as in `_watch`
        self._owes_release = False


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _request(keep_alive: KeepAlive) -> pb2.WatchRequest:
    return pb2.WatchRequest(
        epoch=keep_alive.epoch,
        holder_id=keep_alive.holder_id,
        name=keep_alive.name,
        sequence=keep_alive.sequence,
        applied_revision=keep_alive.applied_revision,
        release=keep_alive.is_release,
    )
