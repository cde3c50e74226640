"""Accepts connections, no more than the server has room for. Made by the composition roots, for bridge and dashboard.

The event loop's own server counts nothing before a TLS handshake is done, and gives no way to refuse a connection
before it: clients that never speak would use up the open files.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import structlog

from authsvc.runtime.environment import Address
from authsvc.runtime.listening import cannot_listen
from authsvc.runtime.logging import log_unexpected
from authsvc.runtime.networks import Networks
from httpbridge.http.fairness import Turns

TLS_HANDSHAKE_SECONDS = 10.0

_BACKLOG_CONNECTIONS = 1024
_TURN_CONNECTIONS = 16
"""Accepted before others have their turn: a millisecond or two."""
_HANDSHAKE_TURNS = 4
_ADDRESS_HANDSHAKE_TURNS = 2
"""TLS handshakes begun before others have their turn, in all and by address: each costs as much as many requests."""
_RETRY_SECONDS = 1.0
"""After the system had no open file left for a connection."""

_log = structlog.get_logger("httpbridge")


class Openable(Protocol):
    """A connection, which a listener opens: a protocol of asyncio."""

    opening: asyncio.Task[object] | None
    """Its TLS handshake, or what there is without one; cancelled, the connection is not opened."""


class Server(Protocol):
    """What responds to the requests of connections."""

    def has_room(self, address: str) -> bool:
        """Return whether an address may have one more connection, after making room for it where that is possible."""

    def __call__(self, address: str) -> Openable:
        """Return the protocol of a new connection, which is counted until `closed`."""

    def refusal(self) -> bytes:
        """Return what is said to a connection too many."""

    def closed(self, connection: Any) -> None:
        """Forget a connection."""


class Listener:
    """Listens on a socket that is bound, and hands the server what it accepts, until `close`.

    To be made inside the event loop. Raises ConfigurationError, which names the variable that the address is from, when
    the system does not allow to listen.
    """

    def __init__(
        self,
        bound: socket.socket,
        server: Server,
        variable: str,
        address: Address,
        *,
        tls: ssl.SSLContext | None,
        trusted_proxies: Networks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = bound
        self._server = server
        self._tls = tls
        self._handshakes = Turns(self._loop, trusted_proxies, _HANDSHAKE_TURNS, _ADDRESS_HANDSHAKE_TURNS)
        self._opening: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        bound.setblocking(False)
        try:
            bound.listen(_BACKLOG_CONNECTIONS)
        except OSError as error:  # of two processes that bound at the same time, the second to listen
            raise cannot_listen(variable, address, error.strerror or str(error)) from None
        self._loop.add_reader(bound, self._accept)

    def close(self) -> None:
        """Stop accepting, and break off the TLS handshakes under way; closing again does nothing."""
        if self._socket.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._tls is not None:
            for task in self._opening:
                task.cancel()

    def _accept(self) -> None:
        for _ in range(_TURN_CONNECTIONS):
            try:
                accepted, name = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("accept_failed", error=error.strerror)
                self._loop.remove_reader(self._socket)
                self._retry = self._loop.call_later(_RETRY_SECONDS, self._loop.add_reader, self._socket, self._accept)
                return
            address = name[0] if isinstance(name, tuple) else ""
            if self._server.has_room(address):
                self._open(accepted, address)
            else:
                self._refuse(accepted)

    def _open(self, accepted: socket.socket, address: str) -> None:
        connection = self._server(address)
        task = self._loop.create_task(self._connect(connection, accepted, address))
        connection.opening = task
        self._opening.add(task)
        task.add_done_callback(partial(self._opened, connection, accepted))

    async def _connect(self, connection: Openable, accepted: socket.socket, address: str) -> object:
        accepted.setblocking(False)
        if self._tls is not None:
            try:
                async with asyncio.timeout(TLS_HANDSHAKE_SECONDS):
                    await self._readable(accepted)
                    await self._handshakes.turn(address)
            except BaseException:
                accepted.close()
                raise
        return await self._loop.connect_accepted_socket(
            lambda: cast(asyncio.BaseProtocol, connection),
            accepted,
            ssl=self._tls,
            ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if self._tls else None,
        )

    async def _readable(self, accepted: socket.socket) -> None:
        """Return once a client has sent something: before that it has no turn to wait for."""
        readable = asyncio.Event()
        self._loop.add_reader(accepted, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(accepted)

    def _opened(self, connection: Openable, accepted: socket.socket, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        connection.opening = None
        if task.cancelled():
            accepted.close()  # nobody has done it where the task had not begun
            self._server.closed(connection)
        elif (error := task.exception()) is not None:
            self._server.closed(connection)
            if not isinstance(error, OSError):  # which TLS's errors are, and the timeout
                log_unexpected(_log, error)

    def _refuse(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            if self._tls is None:
                accepted.send(self._server.refusal())
                accepted.recv(65536)  # closed with something unread, it would take the response back
