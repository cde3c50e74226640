"""Accepts connections, no more than the server has room for. Made by the composition root.

The event loop's own server counts nothing before a TLS handshake is done, and gives no way to refuse a connection
before it: clients that never speak would use up the open files.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import partial

import structlog

from httpbridge.connection import Connection
from httpbridge.server import PublicServer

TLS_HANDSHAKE_SECONDS = 10.0

_BACKLOG_CONNECTIONS = 1024
_TURN_CONNECTIONS = 64
"""Accepted before others have their turn."""
_RETRY_SECONDS = 1.0
"""After the system had no open file left for a connection."""

_log = structlog.get_logger("httpbridge")


class Listener:
    """Listens on a socket that is bound, and hands the server what it accepts, until `close`.

    To be made inside the event loop. Raises OSError when the system does not allow to listen.
    """

    def __init__(self, bound: socket.socket, server: PublicServer, *, tls: ssl.SSLContext | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = bound
        self._server = server
        self._tls = tls
        self._opening: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        bound.setblocking(False)
        bound.listen(_BACKLOG_CONNECTIONS)
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
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("accept_failed", error=error.strerror)
                self._loop.remove_reader(self._socket)
                self._retry = self._loop.call_later(_RETRY_SECONDS, self._loop.add_reader, self._socket, self._accept)
                return
            if self._server.has_room():
                self._open(accepted)
            else:
                self._refuse(accepted)

    def _open(self, accepted: socket.socket) -> None:
        connection = self._server()
        opening = self._loop.connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=self._tls,
            ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if self._tls else None,
        )
        task: asyncio.Task[object] = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(partial(self._opened, connection))

    def _opened(self, connection: Connection, task: asyncio.Task[object]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            self._server.closed(connection)
        elif (error := task.exception()) is not None:
            self._server.closed(connection)
            if not isinstance(error, OSError):  # which TLS's errors are, and the timeout
                self._server.failed(error)

    def _refuse(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            accepted.setblocking(False)
            if self._tls is None:
                accepted.send(self._server.refusal())
                accepted.recv(65536)  # closed with something unread, it would take the answer back
