"""Calls of BatchValidate: answers come back typed and each by itself, and every fault says why in one line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import TokenFile, TokenSource
from authsvc.client.key_client import KEYS_PER_CALL_MAX, KeyClient
from authsvc.client.verdict_cache import sendable_origin
from authsvc.client.verdicts import ORIGIN_CHARACTERS_MAX, Decision, KeyServiceUnavailableError, Response, Verdict
from authsvc.runtime.environment import Address, Secret
from authsvc.v1 import key_service_pb2 as pb2
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, Call, FakeKeyService, allowed, invalid, refused, serve
from tests.authsvc.conftest import running
from tests.clocks import Clock
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")
OTHER = ApiKey("dt_76543210fedcba9876543210")
TOKEN = TokenSource(Secret(BRIDGE_TOKEN))


@pytest.fixture
async def client(address: Address, clock: Clock) -> AsyncIterator[KeyClient]:
    client = KeyClient(address, TOKEN, None, clock)
    yield client
    await client.close()


async def ask(client: KeyClient, origin: str | None) -> Response:
    """Ask about one key; raise the error if there is no answer."""
    (answer,) = await client.validate([(KEY, origin)])
    if isinstance(answer, KeyServiceUnavailableError):
        raise answer
    return answer


async def fault(client: KeyClient) -> str:
    """Return why a call fails, which must be one short line without the key or the token."""
    with pytest.raises(KeyServiceUnavailableError) as caught:
        await ask(client, None)
    message = str(caught.value)
    assert message.isprintable()
    assert KEY.reveal() not in message
    assert BRIDGE_TOKEN not in message
    return message


@pytest.mark.parametrize(
    ("response", "decision", "any_origin", "cache_ttl_seconds", "revision"),
    [
        (allowed(revision=7), Decision(Verdict.ALLOWED, "demo", "key_0123456789abcdef"), True, 60.0, 7),
        (allowed(any_origin=False), Decision(Verdict.ALLOWED, "demo", "key_0123456789abcdef"), False, 60.0, 1),
        (refused(), Decision(Verdict.ORIGIN_NOT_ALLOWED, "demo", "key_0123456789abcdef"), False, 60.0, 1),
        (invalid(revision=0), Decision(Verdict.INVALID_KEY, "", ""), True, 5.0, 0),
    ],
)
async def test_an_answer_comes_back_typed(
    service: FakeKeyService,
    client: KeyClient,
    response: pb2.ValidateResponse,
    decision: Decision,
    any_origin: bool,
    cache_ttl_seconds: float,
    revision: int,
) -> None:
    service.answer = response
    answer = await ask(client, "https://example.com")
    assert answer.decision == decision
    assert (answer.any_origin, answer.cache_ttl_seconds, answer.revision) == (any_origin, cache_ttl_seconds, revision)
    assert service.calls == [Call(KEY.reveal(), "https://example.com", f"Bearer {BRIDGE_TOKEN}")]


async def test_a_ttl_below_a_second_is_kept(service: FakeKeyService, client: KeyClient) -> None:
    service.answer.cache_ttl.CopyFrom(Duration(seconds=1, nanos=500_000_000))
    assert (await ask(client, None)).cache_ttl_seconds == 1.5


async def test_no_origin_and_an_empty_one_are_told_apart(service: FakeKeyService, client: KeyClient) -> None:
    await ask(client, None)
    await ask(client, "")
    assert [call.origin for call in service.calls] == [None, ""]


@pytest.mark.parametrize(
    ("origin", "sent"),
    [
        (None, None),
        ("", ""),
        ("https://example.com", "https://example.com"),
        ("https://bücher.example", "https://bücher.example"),
        ("x" * ORIGIN_CHARACTERS_MAX, "x" * ORIGIN_CHARACTERS_MAX),
        ("x" * (ORIGIN_CHARACTERS_MAX + 1), ""),
        ("ü" * (ORIGIN_CHARACTERS_MAX + 1), ""),
        ("https://\udcff.example", ""),
    ],
)
async def test_an_origin_that_cannot_be_sent_is_sent_as_the_empty_one(
    service: FakeKeyService, client: KeyClient, origin: str | None, sent: str | None
) -> None:
    await ask(client, sendable_origin(origin))
    assert service.calls[0].origin == sent


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
async def test_a_status_other_than_ok_is_a_fault_and_never_a_verdict(
    service: FakeKeyService, client: KeyClient, status: grpc.StatusCode
) -> None:
    service.status = status
    message = await fault(client)
    assert "the test says so" not in message
    service.status = None
    assert (await ask(client, None)).decision.verdict is Verdict.ALLOWED


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "refuses our token"),
        (grpc.StatusCode.PERMISSION_DENIED, "does not let our token"),
        (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer within 2 s"),
    ],
)
async def test_a_fault_says_why(
    service: FakeKeyService, client: KeyClient, status: grpc.StatusCode, reason: str
) -> None:
    service.status = status
    assert reason in await fault(client)


@pytest.mark.parametrize(
    "response",
    [
        pb2.ValidateResponse(),
        pb2.ValidateResponse(verdict=99),  # type: ignore[arg-type]  # a verdict of a later version
        pb2.ValidateResponse(verdict=pb2.VERDICT_ALLOWED, project_id="demo"),
        pb2.ValidateResponse(verdict=pb2.VERDICT_ALLOWED, key_id="key_1"),
        pb2.ValidateResponse(verdict=pb2.VERDICT_ORIGIN_NOT_ALLOWED),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_fault(
    service: FakeKeyService, client: KeyClient, response: pb2.ValidateResponse
) -> None:
    service.answer = response
    assert ("sent verdict" if response.verdict else "database") in await fault(client)


async def test_each_lookup_of_a_call_is_answered_by_itself(service: FakeKeyService, client: KeyClient) -> None:
    service.next_answers += [allowed(revision=7), pb2.ValidateResponse(), invalid(), pb2.ValidateResponse(verdict=99)]  # type: ignore[arg-type]  # a verdict of a later version
    answers = await client.validate([(KEY, "https://example.com"), (KEY, None), (OTHER, ""), (OTHER, None)])
    first, without_verdict, third, senseless = answers
    assert isinstance(first, Response)
    assert (first.decision.verdict, first.revision) == (Verdict.ALLOWED, 7)
    assert isinstance(third, Response)
    assert third.decision.verdict is Verdict.INVALID_KEY
    assert isinstance(without_verdict, KeyServiceUnavailableError)
    assert isinstance(senseless, KeyServiceUnavailableError)
    assert [(call.api_key, call.origin) for call in service.calls] == [
        (KEY.reveal(), "https://example.com"),
        (KEY.reveal(), None),
        (OTHER.reveal(), ""),
        (OTHER.reveal(), None),
    ]
    assert service.batches == [4]


async def test_the_service_takes_the_largest_call(tmp_path: Path, clock: Clock) -> None:
    """Nobody can spoil a call for the others with long origins, or characters that take four bytes."""
    async with running(tmp_path) as real:
        token = TokenSource(Secret(real.token("bridge")[0][1].removeprefix("Bearer ")))
        client = KeyClient(real.address, token, None, clock, deadline_seconds=30.0)
        origin = sendable_origin("\N{GRINNING FACE}" * ORIGIN_CHARACTERS_MAX)
        answers = await client.validate([(KEY, origin)] * KEYS_PER_CALL_MAX)
        await client.close()
    assert len(answers) == KEYS_PER_CALL_MAX
    assert all(isinstance(answer, Response) for answer in answers)


async def test_a_service_that_answers_another_number_of_lookups_is_a_fault(
    service: FakeKeyService, client: KeyClient
) -> None:
    """Which answer belongs to which key is not known then."""
    service.answers_missing = 1
    with pytest.raises(KeyServiceUnavailableError, match="answered 1 of 2 lookups"):
        await client.validate([(KEY, None), (OTHER, None)])


async def test_calls_at_once_go_over_several_connections(service: FakeKeyService, client: KeyClient) -> None:
    """Each reaches a process of the key service of its own, if that has several."""
    service.gate.clear()
    calls = [asyncio.create_task(ask(client, None)) for _ in range(4)]
    await service.arrived(4)
    service.gate.set()
    await asyncio.gather(*calls)
    assert len(set(service.peers)) == 4


async def test_calls_take_turns_on_the_connections_and_avoid_one_that_is_busy(
    service: FakeKeyService, client: KeyClient
) -> None:
    held = service.gate = asyncio.Event()
    slow = asyncio.create_task(ask(client, None))
    await service.arrived(1)
    service.gate = asyncio.Event()
    service.gate.set()
    for _ in range(6):
        await ask(client, None)
    busy, *others = service.peers
    assert others == [*others[:3], *others[:3]]
    assert len({busy, *others}) == 4
    held.set()
    await slow
    await ask(client, None)
    assert service.peers[-1] == busy


async def test_a_connection_that_fails_is_spared_while_others_do_not(
    service: FakeKeyService, client: KeyClient, clock: Clock
) -> None:
    """Otherwise one that fails fast would take most of the calls, always having the fewest under way."""
    service.status = grpc.StatusCode.INTERNAL
    await fault(client)
    service.status = None
    service.gate.clear()
    calls = [asyncio.create_task(ask(client, None)) for _ in range(6)]
    await service.arrived(7)
    failed, *others = service.peers
    assert failed not in others
    clock.now += 1.0
    calls.append(asyncio.create_task(ask(client, None)))
    await service.arrived(8)
    assert service.peers[-1] == failed
    service.gate.set()
    await asyncio.gather(*calls)


async def test_a_call_that_grpc_itself_refuses_to_send_is_a_fault(address: Address, clock: Clock) -> None:
    client = KeyClient(address, TokenSource(Secret("käse")), None, clock)
    assert "could not be sent" in await fault(client)
    await client.close()


async def test_a_service_that_hangs_is_a_fault_at_the_deadline(
    service: FakeKeyService, address: Address, clock: Clock
) -> None:
    service.gate.clear()
    client = KeyClient(address, TOKEN, None, clock, deadline_seconds=0.1)
    async with asyncio.timeout(60):
        while not service.cancelled.is_set():  # on a busy machine, a deadline may pass before the service has the call
            assert "did not answer within 0.1 s" in await fault(client)
    await client.close()


async def test_cancelling_a_caller_cancels_its_call(service: FakeKeyService, client: KeyClient) -> None:
    service.gate.clear()
    call = asyncio.create_task(ask(client, None))
    await service.arrived(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(service.cancelled.wait(), 60)


async def test_closing_ends_calls_on_their_way_with_a_fault(service: FakeKeyService, client: KeyClient) -> None:
    service.gate.clear()
    call = asyncio.create_task(ask(client, None))
    await service.arrived(1)
    await client.close()
    with pytest.raises(KeyServiceUnavailableError, match="closed"):
        await call
    assert "closed" in await fault(client)


async def test_a_service_that_is_not_there_is_a_fault_until_it_is(clock: Clock) -> None:
    """No restart is needed, whichever starts first and however often the service comes and goes."""
    service = FakeKeyService()
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    await server.stop(None)
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock)
    assert "refuses connections" in await fault(client)
    for _ in range(2):
        server, _port = serve(service, f"127.0.0.1:{port}")
        await server.start()
        await until_reached(client)
        await server.stop(None)
        await until_lost(client)
    await client.close()


async def test_a_channel_that_fails_for_long_is_replaced(clock: Clock) -> None:
    """Whatever state the old one is in: recovery does not wait for its back-off."""
    service = FakeKeyService()
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    await server.stop(None)
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock)
    for _ in range(6):
        await fault(client)
        clock.now += 1.0
    server, _port = serve(service, f"127.0.0.1:{port}")
    await server.start()
    await until_reached(client)
    await client.close()
    await server.stop(None)


@pytest.mark.parametrize("host", ["fe80::1%no-such-interface", "no..name", "x" * 64])
async def test_an_unknown_host_is_named(host: str, clock: Clock) -> None:
    """Hosts that the resolver refuses without asking the network."""
    address = Address(host, 50051)
    client = KeyClient(address, TOKEN, None, clock, 60.0)
    assert await fault(client) == f"{address}: the host is not known"
    await client.close()


async def test_a_service_behind_tls_is_named_to_a_client_without(
    service: FakeKeyService, clock: Clock, server_certificate: grpc.ServerCredentials
) -> None:
    server, port = serve(service, "127.0.0.1:0", server_certificate)
    await server.start()
    client = KeyClient(Address("127.0.0.1", port), TOKEN, None, clock)
    assert "may expect TLS" in await fault(client)
    await client.close()
    await server.stop(None)


async def test_a_missing_token_file_is_a_fault_until_the_service_writes_it(
    service: FakeKeyService, address: Address, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "bridge-token"
    client = KeyClient(address, TokenFile(path), None, clock)
    assert f"{path} does not exist" in await fault(client)
    path.write_text(BRIDGE_TOKEN + "\n")
    assert (await ask(client, None)).decision.verdict is Verdict.ALLOWED
    await client.close()


async def test_a_replaced_token_is_found_without_a_failed_call(
    service: FakeKeyService, address: Address, clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "bridge-token"
    path.write_text(BRIDGE_TOKEN)
    client = KeyClient(address, TokenFile(path), None, clock)
    await ask(client, None)
    second, third = 32 * "2", 32 * "3"
    service.token = second
    assert "refuses our token" in await fault(client)
    path.write_text(second)
    await ask(client, None)
    service.token = third
    path.write_text(third)
    await ask(client, None)
    assert [call.authorization for call in service.calls[-2:]] == [f"Bearer {second}", f"Bearer {third}"]
    await client.close()


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"line\nline", b"\xff\xfe", "tökèn".encode(), 31 * b"x"])
async def test_a_file_without_a_token_is_a_fault(
    address: Address, clock: Clock, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bridge-token"
    path.write_bytes(content)
    client = KeyClient(address, TokenFile(path), None, clock)
    assert "holds something else" in await fault(client)
    await client.close()


async def test_an_unreadable_token_file_is_a_fault(address: Address, clock: Clock, tmp_path: Path) -> None:
    client = KeyClient(address, TokenFile(tmp_path), None, clock)
    assert "Is a directory" in await fault(client)
    await client.close()


async def is_reached(client: KeyClient) -> bool:
    """Whether a call succeeds."""
    with suppress(KeyServiceUnavailableError):
        await ask(client, None)
        return True
    return False


async def until_reached(client: KeyClient) -> None:
    """Return once a call succeeds: the channel's back-off is at most a second."""
    await until("the service is reached", lambda: is_reached(client))


async def until_lost(client: KeyClient) -> None:
    """Return once a call fails."""

    async def is_lost() -> bool:
        return not await is_reached(client)

    await until("the service is lost", is_lost)
