"""Whoever sends much in a row waits for others, and not they for him: turns of callers, connections, and pieces."""

import asyncio
import socket

import pytest

from authsvc.runtime.networks import Networks
from httpbridge.http.fairness import CALLER_TURNS, TURNS, Caller, Turns
from tests.httpbridge.conftest import BODY, NOBODY, Bridge, request, running_bridge

HEALTH = request("GET", "/health", key=None)


class Worker:
    """Asks for one turn after the other, as a connection does, and notes each."""

    def __init__(self, turns: Turns, caller: Caller, log: list[str]) -> None:
        self._turns = turns
        self._caller = caller
        self._log = log

    def ask(self) -> None:
        self._turns.wait(self._caller, self._work)

    def _work(self) -> None:
        self._log.append(self._caller.name)
        self._turns.end(self._caller)
        self.ask()


async def test_of_one_caller_no_more_is_done_in_a_turn_of_the_loop_whatever_it_asks_for() -> None:
    turns, log = Turns(asyncio.get_running_loop(), NOBODY), list[str]()
    caller = turns.join("192.0.2.1")
    for _ in range(1000):
        Worker(turns, caller, log).ask()
    for _ in range(10):
        log.clear()
        await asyncio.sleep(0)
        assert len(log) <= CALLER_TURNS


async def test_one_caller_after_the_other_has_its_turn_however_many_connections_one_has() -> None:
    turns, log = Turns(asyncio.get_running_loop(), NOBODY), list[str]()
    for number in range(TURNS // CALLER_TURNS + 1):
        caller = turns.join(f"192.0.2.{number}")
        for _ in range(500):
            Worker(turns, caller, log).ask()
    few = turns.join("198.51.100.1")
    Worker(turns, few, log).ask()
    for _ in range(100):
        await asyncio.sleep(0)
    assert log.count(few.name) > 30
    counts = [log.count(f"192.0.2.{number}") for number in range(TURNS // CALLER_TURNS + 1)]
    assert max(counts) < 1.2 * min(counts)


async def test_a_subscriber_of_ipv6_is_one_caller_and_each_connection_of_a_trusted_proxy_is_another() -> None:
    turns = Turns(asyncio.get_running_loop(), Networks.parse("10.0.0.0/8"))
    assert turns.join("2001:db8::1") is turns.join("2001:db8::2")
    assert turns.join("2001:db8:0:1::1") is not turns.join("2001:db8::1")
    assert turns.join("10.0.0.1") is not turns.join("10.0.0.1")


async def flood(bridge: Bridge, source: str, connections: int, data: bytes) -> list[socket.socket]:
    """Send the same on so many connections, and read nothing."""
    loop, sockets = asyncio.get_running_loop(), []
    for _ in range(connections):
        client = socket.socket()
        client.setblocking(False)
        client.bind((source, 0))
        await loop.sock_connect(client, ("127.0.0.1", bridge.port))
        sockets.append(client)
    for client in sockets:
        assert client.send(data) == len(data)
    return sockets


def answers(sockets: list[socket.socket]) -> int:
    """Count the answers that have come, and forget them."""
    count = 0
    for client in sockets:
        try:
            while data := client.recv(1024 * 1024):
                count += data.count(b"HTTP/1.1 ")
        except BlockingIOError:
            pass
    return count


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"], ids=["its own address", "another"])
async def test_a_request_waits_for_few_of_those_that_others_pipeline(bridge: Bridge, source: str) -> None:
    """100 connections with 50 requests each in flight: without turns, thousands were answered first."""
    client = await bridge.connect()
    client.send(HEALTH)
    await client.answer()
    sockets = await flood(bridge, source, 100, HEALTH * 50)
    client.send(request(body=BODY))
    assert (await client.answer()).status == 200
    count = answers(sockets)
    # Four turns of the event loop; with the same address also one turn of each of its connections.
    assert count <= 4 * CALLER_TURNS + (100 if source == "127.0.0.1" else 0)
    async with asyncio.timeout(60):
        while count < 5000:
            await asyncio.sleep(0)
            count += answers(sockets)
    for one in sockets:
        one.close()


async def loop_turns_until(done: asyncio.Event) -> int:
    count = 0
    while not done.is_set():
        await asyncio.sleep(0)
        count += 1
    return count


CHUNKED = request("POST", "/ingest/logs", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 40_000) + b"0\r\n\r\n",
        b"".join(request("GET", "/health", *(f"X-{i}: {'y' * 600}" for i in range(90)), key=None) for _ in range(4))
        + request(body=BODY),
    ],
    ids=["chunks of one byte", "large heads"],
)
async def test_what_is_dear_to_parse_is_parsed_in_pieces_between_which_others_have_their_turn(
    bridge: Bridge, data: bytes
) -> None:
    """A quarter of a megabyte that came at once: in chunks of one byte it takes 17 ms to parse."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
        await loop.sock_connect(client, ("127.0.0.1", bridge.port))
        assert client.send(data) == len(data)
        turns = await loop_turns_until(bridge.sink.writing)
    assert turns >= len(data) / 16_384


async def test_what_waits_for_its_turn_is_bounded_for_all_and_for_each_address() -> None:
    """Heads that never end, and what follows them in the same segment: who holds too much is told to come again."""
    partial = b"GET /health HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 5
    async with running_bridge(held_bytes_max=200_000, caller_held_bytes_max=100_000) as bridge:
        held = [await bridge.connect(source="127.0.0.2") for _ in range(2)]
        for client in held:
            client.send(partial)
            await bridge.exchange(HEALTH)
        refused = await bridge.connect(source="127.0.0.2")
        refused.send(partial)
        answer = await refused.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (503, b'{"error": "Overloaded"}', "close")
        other = await bridge.connect(source="127.0.0.3")
        other.send(partial)
        await bridge.exchange(HEALTH)
        for client in (*held, other):
            client.send(b"\r\n")
            assert (await client.answer()).status == 200
        again = await bridge.connect(source="127.0.0.2")
        again.send(partial + b"\r\n")
        assert (await again.answer()).status == 200


async def test_a_connection_that_ends_while_it_waits_gives_back_all_that_it_held() -> None:
    async with running_bridge(caller_held_bytes_max=100_000) as bridge:
        for _ in range(20):
            client = await bridge.connect()
            client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 5)
            await bridge.exchange(HEALTH)
            await client.close()
        assert (await bridge.exchange(HEALTH)).status == 200
        assert bridge.server.held_budget._taken_bytes == 0
