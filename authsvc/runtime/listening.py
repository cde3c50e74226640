"""Binding a port, alone or together with others."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from authsvc.runtime.environment import Address, ConfigurationError

_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


@asynccontextmanager
async def bind(address: Address, variable: str, *, is_shared: bool = False) -> AsyncIterator[list[socket.socket]]:
    """Return a socket for each address of a name (for the first alone with port 0), bound and not listening yet.

    They are closed at the end. With `is_shared` the port is shared with the other workers. Without, one that anybody
    listens on is refused, also if they would share it; as long as nobody listens, workers can still bind it. Raises
    ConfigurationError naming the variable.
    """
    sockets: list[socket.socket] = []
    with ExitStack() as stack:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                address.host_to_bind, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            if address.port == 0:
                del found[1:]  # each would get a port of its own
            for family, kind, protocol, _, name in dict.fromkeys(found):
                try:
                    bound = stack.enter_context(socket.socket(family, kind, protocol))
                    _bind(bound, name, is_shared)
                    sockets.append(bound)
                except OSError as error:
                    # A name may have an address of a family that this machine lacks: ::1 is in many a hosts file.
                    if error.errno not in _ABSENT or len(found) == 1:
                        raise
            if not sockets:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        except OSError as error:
            raise cannot_listen(variable, address, error.strerror or str(error)) from None
        yield sockets


def bound_address(sockets: list[socket.socket]) -> Address:
    """Return the first socket's address."""
    return Address(*sockets[0].getsockname()[:2])


def cannot_listen(variable: str, address: Address, reason: str) -> ConfigurationError:
    """Return the error for an address that cannot be listened on."""
    return ConfigurationError(f"{variable}: cannot listen on {address}: {reason}")


def _bind(unbound: socket.socket, name: Any, is_shared: bool) -> None:
    unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if unbound.family == socket.AF_INET6:
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    unbound.bind(name)
