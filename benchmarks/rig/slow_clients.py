"""Connections that keep a bridge waiting, until standard input ends.

Usage: python -m benchmarks.rig.slow_clients ADDRESS IDLE SLOW SENT_BYTES

Prints how many are open, and how many were refused at once. IDLE send nothing; SLOW send so many bytes of a body, and
then one each second.
"""

import asyncio
import resource
import sys
from typing import cast

import uvloop

from benchmarks.rig.traffic import head, key

_BODY_BYTES = 1_000_000
"""That are still to come."""
_OPENING = 100
"""At a time, so that no queue of connections to be accepted runs over."""
_SETTLE_SECONDS = 0.5
"""After all was sent: refusals have come by then."""


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_open = True
        """Neither closed nor answered, which is a refusal here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self.is_open = False

    def is_sending(self) -> bool:
        return self.is_open and self.transport is not None and self.transport.get_write_buffer_size() > 0

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.is_open = False


async def main(address: str, idle: str, slow: str, sent_bytes: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    wanted = min(int(idle) + int(slow), hard - 100)
    clients: list[_Client] = []
    while len(clients) < wanted:
        count = min(_OPENING, wanted - len(clients))
        made = await asyncio.gather(*(loop.create_connection(_Client, host, int(port)) for _ in range(count)))
        clients += [client for _, client in made]
    dawdlers = clients[: int(slow)]
    for client in dawdlers:
        assert client.transport is not None
        client.transport.write(head(key(0), int(sent_bytes) + _BODY_BYTES) + b" " * int(sent_bytes))
    while any(client.is_sending() for client in dawdlers):
        await asyncio.sleep(0.01)
    await asyncio.sleep(_SETTLE_SECONDS)
    opened = sum(client.is_open for client in clients)
    print(opened, len(clients) - opened, flush=True)
    ended = loop.run_in_executor(None, sys.stdin.read)
    while not ended.done():
        for client in dawdlers:
            if client.is_open and client.transport is not None:
                client.transport.write(b" ")
        await asyncio.wait([ended], timeout=1)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
