"""Streams that end, hang or are given up: the lookup is made again or fails in time, and no answer goes astray."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.client import key_client
from authsvc.client.api_key import ApiKey
from authsvc.client.key_client import KeyClient
from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import Address
from tests.authsvc.client.fake_key_service import FakeKeyService, invalid, serve
from tests.authsvc.client.streaming import (
    ALLOWED,
    INVALID,
    KEY,
    OTHER,
    TOKEN,
    ask,
    asking,
    bridge_token,
    open_stream,
    until_reached,
)
from tests.authsvc.conftest import running
from tests.authsvc.revocation.watching import issue
from tests.clocks import Clock

STATUSES = list(grpc.StatusCode)


@pytest.fixture
def service() -> FakeKeyService:
    """Response by which key it is: KEY is good and OTHER is not."""
    return FakeKeyService(streams_refused=None, answers_of_keys={OTHER.reveal(): invalid()})


@pytest.fixture
async def client(address: Address, clock: Clock, one_channel: None) -> AsyncIterator[KeyClient]:
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=30.0)
    yield client
    await client.close()


async def test_while_calls_fail_no_stream_is_tried(service: FakeKeyService, client: KeyClient) -> None:
    """A call finds out what is wrong."""
    await open_stream(client, service)
    service.status = grpc.StatusCode.INTERNAL
    service.stream_end = grpc.StatusCode.INTERNAL
    for _ in range(3):
        with pytest.raises(KeyServiceUnavailableError, match="INTERNAL"):
            await ask(client)
    assert service.batch_streams == 1
    service.status = service.stream_end = None
    assert [await ask(client) for _ in range(2)] == [ALLOWED] * 2
    assert service.ways == ["call", "stream", "stream", "call", "call", "call", "call", "stream"]


@pytest.mark.parametrize("status", STATUSES)
async def test_a_stream_that_ends_in_place_of_an_answer_is_no_fault(
    service: FakeKeyService, client: KeyClient, status: grpc.StatusCode, unhandled: list[dict[str, Any]]
) -> None:
    """The lookup is made again by a call, and the next one opens another stream."""
    await open_stream(client, service)
    service.stream_end = status
    assert await ask(client, OTHER) is INVALID
    assert service.ways == ["call", "stream", "stream", "call"]
    service.stream_end = None
    assert await ask(client) is ALLOWED
    assert (service.ways[-1], service.batch_streams) == ("stream", 2)
    assert not unhandled


@pytest.mark.parametrize("status", STATUSES)
async def test_a_stream_that_ends_between_two_lookups_is_no_fault(
    service: FakeKeyService, client: KeyClient, status: grpc.StatusCode, unhandled: list[dict[str, Any]]
) -> None:
    """Whether the client has heard of it by the next one or not."""
    for _ in range(10):
        await open_stream(client, service)
        service.end_batch_streams(status)
        assert await ask(client, OTHER) is INVALID
        assert await ask(client) is ALLOWED
    assert not unhandled


async def test_a_service_that_is_restarted_between_two_lookups_answers_both(clock: Clock, one_channel: None) -> None:
    service = FakeKeyService(streams_refused=None)
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock)
    for number in range(1, 6):
        await open_stream(client, service)
        assert service.batch_streams == number
        await server.stop(None)
        server, _ = serve(service, f"127.0.0.1:{port}")
        await server.start()
        assert await ask(client) is ALLOWED
        service.ways.clear()
    await client.close()
    await server.stop(None)


async def test_a_service_that_is_killed_with_a_lookup_on_a_stream_is_named_until_it_is_back(
    clock: Clock, one_channel: None
) -> None:
    """As with a call."""
    service = FakeKeyService(streams_refused=None)
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock)
    await open_stream(client, service)
    service.gate.clear()
    lookup = await asking(client, service)
    await server.stop(None)
    with pytest.raises(KeyServiceUnavailableError, match="refuses connections"):
        await lookup
    service.gate.set()
    server, _ = serve(service, f"127.0.0.1:{port}")
    await server.start()
    await until_reached(client)
    assert await ask(client) is ALLOWED
    assert service.ways[-1] == "stream"
    await client.close()
    await server.stop(None)


async def test_a_stream_that_does_not_answer_is_a_fault_at_the_deadline_and_its_late_answer_nobodys(
    service: FakeKeyService, address: Address, clock: Clock, one_channel: None, unhandled: list[dict[str, Any]]
) -> None:
    """Who asks next must not get it: it is about another key."""
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=1.0)
    await open_stream(client, service)
    service.gate.clear()
    with pytest.raises(KeyServiceUnavailableError, match=f"{address} did not answer within 1 s"):
        await ask(client, OTHER)
    service.gate.set()
    for _ in range(3):
        assert await ask(client) is ALLOWED
        assert await ask(client, OTHER) is INVALID
    await client.close()
    assert not unhandled


@pytest.mark.parametrize("seconds_between", [0.0, 6.0])
async def test_a_new_stream_that_does_not_answer_costs_nobody_an_answer_and_is_not_tried_again_for_a_minute(
    service: FakeKeyService,
    address: Address,
    clock: Clock,
    one_channel: None,
    monkeypatch: pytest.MonkeyPatch,
    seconds_between: float,
) -> None:
    """Something between the two may keep what is streamed to itself. Nor where the channel is opened anew meanwhile."""
    monkeypatch.setattr(key_client, "_FIRST_RESPONSE_SECONDS", 0.05)
    client = KeyClient(address, TOKEN, None, clock)
    assert await ask(client) is ALLOWED
    service.stream_gate.clear()
    assert await ask(client) is ALLOWED
    service.stream_gate.set()
    for _ in range(3):
        clock.now += seconds_between
        assert await ask(client) is ALLOWED
    service.status = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(KeyServiceUnavailableError):
        await ask(client)
    service.status = None
    for _ in range(2):
        assert await ask(client) is ALLOWED
    assert service.ways == ["call", "stream", *["call"] * 7]
    clock.now += 60.0
    assert await ask(client) is ALLOWED
    assert service.ways[-1] == "stream"
    await client.close()


async def test_a_channel_that_is_opened_anew_has_a_stream_of_its_own(
    service: FakeKeyService, address: Address, clock: Clock, one_channel: None
) -> None:
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=1.0)
    await open_stream(client, service)
    service.gate.clear()
    clock.now += 6.0  # it has not answered for so long that the channel is given up
    with pytest.raises(KeyServiceUnavailableError, match="did not answer"):
        await ask(client)
    service.gate.set()
    for _ in range(3):
        assert await ask(client) is ALLOWED
    assert service.ways[-3:] == ["call", "stream", "stream"]
    assert len(set(service.peers)) == 2
    await client.close()


async def test_a_service_that_froze_is_asked_by_a_call_next(
    service: FakeKeyService, address: Address, clock: Clock, one_channel: None
) -> None:
    """Whether it is back, a call finds out; then streams go on."""
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=1.0)
    await open_stream(client, service)
    service.gate.clear()
    with pytest.raises(KeyServiceUnavailableError, match="did not answer"):
        await ask(client)
    service.gate.set()
    for _ in range(2):
        assert await ask(client) is ALLOWED
    assert service.ways == ["call", "stream", "stream", "call", "stream"]
    await client.close()


async def test_an_address_that_takes_connections_and_says_nothing_is_a_fault_at_the_deadline(
    clock: Clock, one_channel: None, unhandled: list[dict[str, Any]]
) -> None:
    """Where a stream could be opened, and cannot now."""
    service = FakeKeyService(streams_refused=None)
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock, deadline_seconds=1.0)
    assert await ask(client) is ALLOWED
    await server.stop(None)
    with socket.create_server(("127.0.0.1", port)):  # the system takes connections, and nobody reads
        async with asyncio.timeout(60):
            for _ in range(3):
                with pytest.raises(KeyServiceUnavailableError, match=r"did not answer (within 1 s|in time)"):
                    await ask(client)
    await client.close()
    assert not unhandled


async def test_a_caller_that_is_cancelled_ends_its_stream_and_its_answer_is_nobodys(
    service: FakeKeyService, client: KeyClient, unhandled: list[dict[str, Any]]
) -> None:
    for _ in range(5):
        await open_stream(client, service)
        service.gate.clear()
        service.cancelled.clear()
        lookup = await asking(client, service, OTHER)
        lookup.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lookup
        await asyncio.wait_for(service.cancelled.wait(), 60)
        service.gate.set()
        assert await ask(client) is ALLOWED
        assert await ask(client, OTHER) is INVALID
    assert not unhandled


async def test_a_caller_that_is_cancelled_as_its_answer_comes_leaves_none_behind(
    service: FakeKeyService, client: KeyClient
) -> None:
    """At whatever moment."""
    for turns in range(60):
        await open_stream(client, service)
        lookup = asyncio.create_task(ask(client, OTHER))
        for _ in range(turns):
            await asyncio.sleep(0)
        lookup.cancel()
        await asyncio.wait([lookup])
        assert await ask(client) is ALLOWED


async def test_restarts_of_the_key_service_itself_are_no_fault(tmp_path: Path, clock: Clock) -> None:
    """Streams end when it stops, and with the next lookup there are others."""
    listen, client, key = "127.0.0.1:0", None, KEY
    for number in range(3):
        async with running(tmp_path / "state", AUTHSVC_LISTEN=listen) as real:
            if client is None:
                listen, client = str(real.address), KeyClient(real.address, bridge_token(real), None, clock)
                key = ApiKey((await issue(real)).api_key)
            assert [await ask(client, key) for _ in range(8)] == [ALLOWED] * 8, number
    assert client is not None
    await client.close()
