"""The control channel of several workers: what joins each to its parent, and through it to the others.

A pair of sockets, over which single bytes go: a worker says that it is ready, or notifies the others. Its end tells
either that the other one has ended.
"""

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import click

from authsvc.runtime.environment import Address, ListenAddress

READY, NOTIFY = b"r", b"n"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told on its command line: who it is, where it listens, and its end of the control channel."""

    name: str
    channel_fd: int
    address: Address

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a command's argument, as `str` writes it; raise BadParameter for what no parent wrote."""
        with suppress(ValueError, OSError):
            name, channel_fd, address = text.split(":", 2)
            spec = cls(name, int(channel_fd), ListenAddress.parse(address))
            if stat.S_ISSOCK(os.fstat(spec.channel_fd).st_mode):
                return spec
        raise click.BadParameter("this command is for `serve` to start")

    def __str__(self) -> str:
        return f"{self.name}:{self.channel_fd}:{self.address}"


async def received(channel: socket.socket) -> bytes:
    """Return what comes next; nothing at the end, also of one that ended without reading what it was told."""
    try:
        return await asyncio.get_running_loop().sock_recv(channel, 4096)
    except ConnectionError:
        return b""


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class ControlChannel:
    """A worker's end: to its parent, and through it to the other workers. Use it with `async with`."""

    def __init__(self, spec: WorkerSpec, hung_up: Callable[[], None] = _killed) -> None:
        """Call `hung_up` when the parent has done so, or has ended.

        A worker ends with its parent, at once: what starts the service again then finds the port free.
        """
        self._hung_up = hung_up
        self._socket = socket.socket(fileno=spec.channel_fd)
        self._socket.setblocking(False)
        self.on_notify: Callable[[], None] = lambda: None
        """Called when another worker has notified; several times at once may count as one."""

    async def __aenter__(self) -> Self:
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._socket.close()

    def ready(self) -> None:
        self._send(READY)

    def notify(self) -> None:
        """Have the others' `on_notify` called. It may be lost, as a parent may end."""
        self._send(NOTIFY)

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # the parent has ended, or has not passed on what was said before
            self._socket.send(message)

    async def _read(self) -> None:
        while await received(self._socket):
            self.on_notify()
        self._hung_up()
