"""Accepting: few connections at a time, and TLS handshakes in turns, so that those who have a connection go on."""

import asyncio
import itertools
import socket
import ssl
from collections import Counter
from typing import Any

import pytest

from authsvc.runtime.networks import Networks
from tests.httpbridge.conftest import BODY, Bridge, request, running_bridge

STRANGER, OTHER = "127.0.0.2", "127.0.0.3"


def connect_now(bridge: Bridge, source: str, data: bytes = b"") -> socket.socket:
    """Connect and send, while the event loop stands still: it finds all of it at once."""
    client = socket.socket()
    client.bind((source, 0))
    client.connect(("127.0.0.1", bridge.port))
    client.sendall(data)
    client.setblocking(False)
    return client


async def test_connections_are_accepted_a_few_at_a_time(bridge: Bridge) -> None:
    clients = [connect_now(bridge, STRANGER) for _ in range(200)]
    counts = [0]
    while counts[-1] < len(clients):
        await asyncio.sleep(0)
        counts.append(len(bridge.server._connections))
    assert max(now - before for before, now in itertools.pairwise(counts)) <= 16
    for client in clients:
        client.close()


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return the first thing that a client of TLS says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(("proxies", "at_once"), [(Networks(), 2), (Networks.parse("127.0.0.0/8"), 4)])
async def test_tls_handshakes_of_one_address_wait_for_each_other_and_not_those_of_others_for_them(
    monkeypatch: pytest.MonkeyPatch, tls: tuple[ssl.SSLContext, ssl.SSLContext], proxies: Networks, at_once: int
) -> None:
    """Each costs as much as many requests; without turns, all that were read at once were done at once."""
    server_side, client_side = tls
    loop = asyncio.get_running_loop()
    connect, turn = loop.connect_accepted_socket, 0
    begun: list[tuple[int, str]] = []

    async def connect_and_note(factory: Any, accepted: socket.socket, **keywords: Any) -> Any:
        begun.append((turn, accepted.getpeername()[0]))
        return await connect(factory, accepted, **keywords)

    monkeypatch.setattr(loop, "connect_accepted_socket", connect_and_note)
    async with running_bridge(ssl_context=server_side, trusted_proxies=proxies) as bridge:
        hello = client_hello(client_side)
        clients = [connect_now(bridge, STRANGER) for _ in range(50)]  # and say nothing
        clients += [connect_now(bridge, STRANGER, hello) for _ in range(50)]
        clients.append(connect_now(bridge, OTHER, hello))
        while len(begun) < 51:
            await asyncio.sleep(0)
            turn += 1
        addresses = [address for _, address in begun]
        assert addresses.index(OTHER) < 20 or proxies, "each connection of a proxy is a caller, in the order they came"
        assert max(Counter(begun).values()) == at_once
        client = await bridge.connect(client_side)
        client.send(request(body=BODY))
        assert (await client.answer()).status == 200
        for one in clients:
            one.close()
