"""Connections of a listener of ours: which of them are too many, and that exactly those are closed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest

from authsvc.api.connections import Connections
from authsvc.api.limits import CallLimits
from authsvc.runtime.networks import Networks

NOBODY = Networks()
PLACES = CallLimits(connections_max=64)


def peers(address: str, *ports: int) -> list[tuple[str, int]]:
    return [(address, port) for port in ports]


@asynccontextmanager
async def listening(
    host: str, look_seconds: float = 1.0
) -> AsyncIterator[tuple[Connections, int, list[asyncio.StreamReader]]]:
    """Give a listener's connections, its port, and three callers."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), host, 0)
    port = server.sockets[0].getsockname()[1]
    connections = Connections(CallLimits(connections_max=100, look_seconds=look_seconds), NOBODY, time.monotonic)
    running = asyncio.create_task(connections.run(port, frozenset))
    callers = [await asyncio.open_connection(host, port) for _ in range(3)]
    try:
        yield connections, port, [reader for reader, _ in callers]
    finally:
        running.cancel()
        await asyncio.wait([running])
        for writer in (*(writer for _, writer in callers), *accepted):
            writer.transport.abort()
        server.close()


def name_of(reader: asyncio.StreamReader) -> str:
    """Return a caller's connection as gRPC names it."""
    host, port, *_ = reader._transport.get_extra_info("sockname")  # type: ignore[attr-defined]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


async def closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 30) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_connection_is_closed_at_once_and_no_other(host: str) -> None:
    async with listening(host) as (connections, _, (one, other, third)):
        connections.close(name_of(other))
        await closed(other)
        connections.close(name_of(third))
        await closed(third)
        assert not one.at_eof()


async def test_looking_leaves_no_descriptor_open() -> None:
    """A caller could use up those of the service else, by having connections closed."""
    async with listening("127.0.0.1") as (connections, port, readers):
        before = psutil.Process().num_fds()
        for _ in range(20):
            connections._look(port, {("192.0.2.1", 1)}, frozenset())
        assert psutil.Process().num_fds() == before
        assert not any(reader.at_eof() for reader in readers)


async def test_a_look_that_fails_is_logged_and_the_next_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Connections._look
    failures = iter([OSError(24, "Too many open files")])

    def failing(*arguments: object) -> None:
        for error in failures:
            raise error
        look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Connections, "_look", failing)
    async with listening("127.0.0.1", look_seconds=0.01) as (connections, _, (one, *_others)):
        connections.close(name_of(one))
        await closed(one)


def test_nothing_is_surplus_while_a_quarter_of_the_places_is_free() -> None:
    connections = Connections(PLACES, NOBODY, time.monotonic)
    assert connections.surplus(peers("192.0.2.1", *range(48)), ()) == set()
    assert connections.surplus(peers("192.0.2.1", *range(48)), ()) == set()


def test_an_address_keeps_a_sixteenth_of_the_places_and_of_these_what_is_in_use() -> None:
    connections = Connections(PLACES, NOBODY, time.monotonic)
    many, few = peers("192.0.2.1", *range(46)), peers("192.0.2.2", 1, 2, 3)
    used = set(many[40:43])
    gone = connections.surplus([*many, *few], used)
    assert (len(gone), gone & used, gone & set(few)) == (42, set(), set())


def test_the_addresses_of_a_64_are_one() -> None:
    connections = Connections(PLACES, NOBODY, time.monotonic)
    found = [(f"2001:db8::{number:x}", 1) for number in range(49)]
    assert len(connections.surplus(found, ())) == 45


def test_a_trusted_proxy_keeps_all_its_connections() -> None:
    connections = Connections(PLACES, Networks.parse("10.0.0.0/8"), time.monotonic)
    for _ in range(2):
        assert connections.surplus(peers("10.0.0.1", *range(60)), ()) == set()


def test_those_that_were_unused_for_long_make_room_when_every_address_has_its_share() -> None:
    connections = Connections(PLACES, NOBODY, time.monotonic)
    old = [(f"192.0.2.{number}", port) for number in range(16) for port in range(3)]
    used = {("192.0.2.1", 0), ("192.0.2.2", 1)}
    new = ("198.51.100.1", 1)
    assert connections.surplus([*old, ("198.51.100.2", 2)], used) == set(), "nobody knows yet which are unused"
    gone = connections.surplus([*old, ("198.51.100.2", 2), new], used)
    assert (len(gone), new in gone, gone & used) == (2, False, set())
