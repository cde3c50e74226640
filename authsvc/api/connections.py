"""The callers' connections: how many each address has, and the end of those that must go.

gRPC owns them, bounds only their number, and cannot close a single one; so it is done by their descriptors.
"""

import asyncio
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import structlog

from authsvc.api.callers import host_and_port
from authsvc.api.limits import CallLimits
from authsvc.runtime.clock import happens
from authsvc.runtime.networks import Networks, Places, address_group

Peer: TypeAlias = tuple[str, int]
"""The callers' end: address and port."""

_DESCRIPTORS = next((path for path in ("/proc/self/fd", "/dev/fd") if Path(path).is_dir()), None)
_log = structlog.get_logger("authsvc")

_AT_ONCE = struct.pack("ii", 1, 0)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SHARE = 10
"""A look takes at most so small a part of the time, however many connections there are."""


class Connections:
    """The connections of this process to one port."""

    def __init__(self, limits: CallLimits, trusted_proxies: Networks, monotonic: Callable[[], float]) -> None:
        self._places = Places(limits.connections_max, trusted_proxies)
        self._look_seconds = limits.look_seconds
        self._trusted_proxies = trusted_proxies
        self._monotonic = monotonic
        self._unwanted: set[Peer] = set()
        self._wake = asyncio.Event()
        self._before: set[Peer] = set()
        """What the last look found, when there were too many."""

    def close(self, connection: str) -> None:
        """Have a connection closed soon, given as gRPC names it."""
        self._unwanted.add(_peer(connection))
        self._wake.set()

    async def run(self, port: int, in_use: Callable[[], Collection[str]]) -> None:
        """Close what must go, until cancelled; on `in_use`, as gRPC names them, there is a call with a token now."""
        while _DESCRIPTORS is not None:
            await happens(self._wake, self._look_seconds)
            self._wake.clear()
            unwanted, self._unwanted = self._unwanted, set()
            started = self._monotonic()
            try:
                await asyncio.to_thread(self._look, port, unwanted, in_use())
            except OSError as error:  # no descriptor is left for the look itself
                _log.error("connections_not_looked_at", reason=error.strerror)
                self._unwanted |= unwanted
                await asyncio.sleep(self._look_seconds)
            await asyncio.sleep((self._monotonic() - started) * _SHARE)

    def _look(self, port: int, unwanted: set[Peer], in_use: Collection[str]) -> None:
        """Close what must go. In a thread: there may be thousands of connections."""
        if len(_descriptors()) >= self._places.free:
            peers = [peer for _, peer in _found(port)]
            unwanted = unwanted | self.surplus(peers, set(map(_peer, in_use)))
        if unwanted:
            for connection, peer in _found(port):
                if peer in unwanted:
                    with suppress(OSError):
                        # What is still to be sent goes with it: its caller may never take it.
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                        connection.shutdown(socket.SHUT_RDWR)  # gRPC takes it for closed by its caller

    def surplus(self, peers: Collection[Peer], in_use: Collection[Peer]) -> set[Peer]:
        """Return which of all connections must go once three quarters of the places are taken.

        First those that an address has beyond its share, the unused ones before others; then, as far as there must be
        more room for whoever comes, those on which nothing was in use since the last look.
        """
        before, self._before = self._before, set()
        too_many = len(peers) - self._places.free
        if too_many <= 0:
            return set()
        self._before = set(peers)
        gone: set[Peer] = set()
        of_addresses: defaultdict[str, list[Peer]] = defaultdict(list)
        for peer in sorted(peers, key=lambda peer: (peer in in_use, peer not in before)):
            if peer[0] not in self._trusted_proxies:
                of_addresses[address_group(peer[0])].append(peer)
        for connections in of_addresses.values():
            gone.update(connections[: max(0, len(connections) - self._places.of_address_max)])
        unused = [
            peer
            for connections in of_addresses.values()
            for peer in connections
            if peer in before and peer not in in_use and peer not in gone
        ]
        gone.update(unused[: max(0, too_many - len(gone))])
        return gone


def _descriptors() -> list[str]:
    return os.listdir(_DESCRIPTORS)  # noqa: PTH208 - a path for each would cost more than the look


def _found(port: int) -> Iterator[tuple[socket.socket, Peer]]:
    """Yield each connection to a port of ours, by a descriptor that lasts until the next one is asked for."""
    for name in _descriptors():
        try:
            # One of our own: gRPC may close its, and the number then be another's.
            descriptor = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        try:
            connection = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)  # no socket
            continue
        with connection, suppress(OSError):  # not connected
            if connection.family in _FAMILIES and connection.getsockname()[1] == port:
                host, peer_port, *_ = connection.getpeername()
                yield connection, (host.removeprefix("::ffff:").partition("%")[0], peer_port)


def _peer(connection: str) -> Peer:
    host, port = host_and_port(connection)
    return host.partition("%")[0], int(port)
