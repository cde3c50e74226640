"""Questions over streams: which go over one, and that each gets its own answer and no other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import TokenFile
from authsvc.client.key_client import KeyClient
from authsvc.client.verdicts import KeyServiceUnavailableError, Response, Verdict
from authsvc.runtime.environment import Address
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, FakeKeyService, invalid, serve
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
)
from tests.authsvc.conftest import running
from tests.authsvc.revocation.watching import issue, revoke
from tests.clocks import Clock
from tests.waiting import until


@pytest.fixture
def service() -> FakeKeyService:
    """Response by which key it is: KEY is good and OTHER is not."""
    return FakeKeyService(streams_refused=None, answers_of_keys={OTHER.reveal(): invalid()})


@pytest.fixture
async def client(address: Address, clock: Clock, one_channel: None) -> AsyncIterator[KeyClient]:
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=30.0)
    yield client
    await client.close()


async def test_the_first_lookup_goes_by_a_call_and_later_ones_over_one_stream(
    service: FakeKeyService, client: KeyClient
) -> None:
    for _ in range(3):
        assert await ask(client) is ALLOWED
        assert await ask(client, OTHER) is INVALID
    assert service.ways == ["call"] + ["stream"] * 5
    assert (service.batch_streams, len(set(service.peers))) == (1, 1)


async def test_each_connection_has_a_stream_of_its_own(service: FakeKeyService, address: Address, clock: Clock) -> None:
    """Each reaches a process of the key service of its own, if that has several."""
    client = KeyClient(address, TOKEN, None, clock)
    for _ in range(12):
        await ask(client)
    await client.close()
    assert service.ways == ["call"] * 4 + ["stream"] * 8
    assert service.batch_streams == len(set(service.peers)) == 4


async def test_many_lookups_of_a_turn_are_each_answered_by_themselves(
    service: FakeKeyService, client: KeyClient
) -> None:
    await open_stream(client, service)
    answers = await client.validate([(KEY, "https://a.test"), (OTHER, ""), (KEY, None)])
    decisions = [answer.decision.verdict for answer in answers if isinstance(answer, Response)]
    assert decisions == [ALLOWED, INVALID, ALLOWED]
    assert [call.origin for call in service.calls[-3:]] == ["https://a.test", "", None]
    assert service.ways[-1] == "stream"


@pytest.mark.parametrize("status", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_service_that_refuses_streams_is_asked_by_calls_and_for_a_stream_once_a_minute(
    service: FakeKeyService, client: KeyClient, clock: Clock, status: grpc.StatusCode
) -> None:
    """An older one, or one that has as many as it takes."""
    service.streams_refused = status
    for _ in range(10):
        assert await ask(client) is ALLOWED
        clock.now += 5.0
    assert service.batch_streams == 1
    service.streams_refused = None
    clock.now += 14.0
    await ask(client)
    assert service.ways == ["call"] * 11
    clock.now += 1.0
    await ask(client)
    await ask(client)
    assert service.ways[11:] == ["stream"] * 2
    assert service.batch_streams == 2


async def test_another_number_of_answers_than_lookups_is_a_fault(service: FakeKeyService, client: KeyClient) -> None:
    """Which answer belongs to which key is not known then."""
    await open_stream(client, service)
    service.answers_missing = 1
    with pytest.raises(KeyServiceUnavailableError, match="answered 1 of 2 lookups"):
        await client.validate([(KEY, None), (OTHER, None)])
    assert service.ways[-1] == "stream"
    service.answers_missing = 0
    assert await ask(client, OTHER) is INVALID
    assert await ask(client) is ALLOWED


async def test_an_answer_that_cannot_be_read_is_asked_for_again_by_a_call(
    service: FakeKeyService, client: KeyClient
) -> None:
    await open_stream(client, service)
    service.stream_bytes = b"\xff\xff\xff"
    assert await ask(client, OTHER) is INVALID
    assert service.ways[-2:] == ["stream", "call"]
    service.stream_bytes = None
    assert await ask(client) is ALLOWED
    assert (service.ways[-1], service.batch_streams) == ("stream", 2)


async def test_lookups_at_the_same_time_do_not_share_a_stream(service: FakeKeyService, client: KeyClient) -> None:
    """Who finds it taken makes a call, and the stream is there for the next one."""
    await open_stream(client, service)
    service.gate.clear()
    lookups = [await asking(client, service, key) for key in (KEY, OTHER, KEY)]
    service.gate.set()
    assert await asyncio.gather(*lookups) == [ALLOWED, INVALID, ALLOWED]
    assert await ask(client, OTHER) is INVALID
    assert service.ways == ["call", "stream", "stream", "call", "call", "stream"]
    assert service.batch_streams == 1


async def test_many_at_once_get_each_its_own_answer(service: FakeKeyService, address: Address, clock: Clock) -> None:
    client = KeyClient(address, TOKEN, None, clock)
    keys = [KEY, OTHER, OTHER] * 8

    async def ask_often(key: ApiKey) -> set[Verdict]:
        return {await ask(client, key) for _ in range(20)}

    answers = await asyncio.gather(*map(ask_often, keys))
    assert answers == [{ALLOWED}, {INVALID}, {INVALID}] * 8
    await client.close()


async def test_closing_ends_a_lookup_on_a_stream_with_a_fault(
    service: FakeKeyService, client: KeyClient, unhandled: list[dict[str, Any]]
) -> None:
    await open_stream(client, service)
    service.gate.clear()
    lookup = await asking(client, service)
    assert service.ways[-1] == "stream"
    await client.close()
    with pytest.raises(KeyServiceUnavailableError, match="this client is closed"):
        await lookup
    with pytest.raises(KeyServiceUnavailableError, match="this client is closed"):
        await ask(client)
    await asyncio.wait_for(service.cancelled.wait(), 60)
    assert service.ways == ["call", "stream", "stream"]
    assert not unhandled


async def test_closing_ends_a_stream_that_nobody_uses(service: FakeKeyService, client: KeyClient) -> None:
    await open_stream(client, service)
    assert service.batch_streams_open == 1
    await client.close()
    await until("no stream is open", lambda: service.batch_streams_open == 0)
    with pytest.raises(KeyServiceUnavailableError, match="this client is closed"):
        await ask(client)


async def test_a_renewed_token_is_found_by_whoever_asks_next(clock: Clock, tmp_path: Path, one_channel: None) -> None:
    """The key service is restarted with another one, and its file replaced."""
    path = tmp_path / "bridge-token"
    service = FakeKeyService(streams_refused=None)
    server, port = serve(service, "127.0.0.1:0")
    client = KeyClient(Address("127.0.0.1", port), TokenFile(path), None, clock)
    for token in (BRIDGE_TOKEN, 32 * "2", 32 * "3"):
        path.write_text(token)
        service.token = token
        await server.start()
        assert await ask(client) is ALLOWED
        await open_stream(client, service)
        assert service.calls[-1].authorization == f"Bearer {token}"
        service.ways.clear()
        await server.stop(None)
        server, _ = serve(service, f"127.0.0.1:{port}")
    await client.close()


def validations(logged: list[Any]) -> list[str]:
    """Return the methods of what was asked. The line of a turn on a stream is written once its answer is."""
    methods = [line["method"].rpartition("/")[2] for line in logged if line["event"] == "call"]
    return [method for method in methods if "Validate" in method]


async def test_the_key_service_itself_is_asked_over_streams_and_what_it_changed_is_so(
    tmp_path: Path, clock: Clock, one_channel: None
) -> None:
    async with running(tmp_path / "state") as real:
        client = KeyClient(real.address, bridge_token(real), None, clock)
        old = ApiKey((await issue(real)).api_key)
        with capture_logs() as logged:
            for _ in range(5):
                assert await ask(client, old) is ALLOWED
                new = ApiKey((await revoke(real)).api_key)
                assert await ask(client, old) is INVALID
                old = new
            await until("all are told", lambda: validations(logged) == ["BatchValidate"] + ["StreamValidate"] * 9)
        await client.close()
