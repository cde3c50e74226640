"""StreamValidate over a real channel: batches answered in order on one stream, who may open it, and how it ends."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from authsvc.api.limits import CallLimits
from authsvc.keys import generate_api_key
from authsvc.storage.key_store import KeyStore
from authsvc.v1 import key_service_pb2 as pb
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import ended, issue, replica, revoke
from tests.postgres import PostgresServer
from tests.waiting import until

Code = grpc.StatusCode
METHOD = "/authsvc.v1.KeyService/StreamValidate"
UNKNOWN_KEY = "dt_" + "0" * 24


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """Give the lines that the service logs, and fail for an error in them, or in gRPC's own log."""
    with capture_logs() as lines:
        yield lines
    assert not [line for line in lines if line["log_level"] == "error"]
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


class Batches:
    """A stream of batches."""

    def __init__(self, service: Service, role: str = "bridge", keys: Any = None) -> None:
        """`keys` is a stub on a channel of its own."""
        self.call: Any = (keys or service.keys).StreamValidate(metadata=service.token(role))

    async def send(self, *requests: pb.ValidateRequest) -> None:
        await self.call.write(pb.StreamValidateRequest(requests=requests))

    async def next(self) -> list[pb.ValidateResponse]:
        response = await self.call.read()
        assert isinstance(response, pb.StreamValidateResponse), "the stream is over"
        return list(response.responses)

    async def verdicts(self, *api_keys: str) -> list[Any]:
        """Ask about keys, and return what the next answer says."""
        await self.send(*map(about, api_keys))
        return [response.verdict for response in await self.next()]


class Gate:
    """Holds up every look at the database until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._open = asyncio.Event(), asyncio.Event()
        lookup = KeyStore.lookup

        async def gated(store: KeyStore, digests: Any) -> Any:
            self.reached.set()
            await self._open.wait()
            return await lookup(store, digests)

        monkeypatch.setattr(KeyStore, "lookup", gated)

    def open(self) -> None:
        self._open.set()


def about(api_key: str, origin: str | None = None) -> pb.ValidateRequest:
    return pb.ValidateRequest(api_key=api_key, origin=origin)


async def batch_verdicts(service: Service, *api_keys: str) -> list[Any]:
    """Return what a call of its own says."""
    request = pb.BatchValidateRequest(requests=list(map(about, api_keys)))
    answer = await service.keys.BatchValidate(request, metadata=service.token("bridge"))
    return [response.verdict for response in answer.responses]


async def until_there_is_room(service: Service) -> None:
    async def is_answered() -> bool:
        batches = Batches(service)
        try:
            return await batches.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # what a write says of a stream that was refused
            return False
        finally:
            batches.call.cancel()

    await until("the service has seen that a stream has gone", is_answered)


async def until_it_stops(service: Service) -> None:
    """Return once the service takes no more connections: from then on streams end after a batch that is under way."""

    async def is_refused() -> bool:
        try:
            _, writer = await asyncio.open_connection(service.address.host, service.address.port)
        except ConnectionError:  # refused, or taken back while the port is closed
            return True
        writer.transport.abort()
        return False

    await until("the service takes no more connections", is_refused)


async def test_a_batch_is_answered_as_a_call_with_it_would_be(service: Service) -> None:
    """A key that may be used from anywhere, one that may not, an unknown one, and what is no key."""
    anywhere = (await issue(service)).api_key
    request = pb.IssueRequest(project_id="bound", origins=["example.com"])
    bound = (await service.keys.Issue(request, metadata=service.token())).api_key
    requests = [
        about(anywhere, "https://a.test"),
        about(bound, "https://example.com"),
        about(bound, "https://other.test"),
        about(UNKNOWN_KEY),
        about("no key"),
        about(anywhere),
    ]
    batches = Batches(service)
    await batches.send(*requests)
    answers = await batches.next()
    assert [answer.verdict for answer in answers] == [
        pb.VERDICT_ALLOWED,
        pb.VERDICT_ALLOWED,
        pb.VERDICT_ORIGIN_NOT_ALLOWED,
        pb.VERDICT_INVALID_KEY,
        pb.VERDICT_INVALID_KEY,
        pb.VERDICT_ALLOWED,
    ]
    call = service.keys.BatchValidate(pb.BatchValidateRequest(requests=requests), metadata=service.token("bridge"))
    assert answers == list((await call).responses)


async def test_each_batch_has_one_answer_in_order_on_a_stream_that_stays_open(service: Service) -> None:
    """Whether its caller waits for the answers, or sends the next ones ahead of them."""
    api_key = (await issue(service)).api_key
    batches = Batches(service)
    assert await batches.verdicts(api_key) == [pb.VERDICT_ALLOWED]
    assert await batches.verdicts() == []
    assert await batches.verdicts(UNKNOWN_KEY, api_key) == [pb.VERDICT_INVALID_KEY, pb.VERDICT_ALLOWED]
    for count in range(20):
        await batches.send(*[about(UNKNOWN_KEY)] * count, about(api_key))
    for count in range(20):
        answers = [answer.verdict for answer in await batches.next()]
        assert answers == [pb.VERDICT_INVALID_KEY] * count + [pb.VERDICT_ALLOWED]
    await batches.call.done_writing()
    assert await ended(batches.call) == (Code.OK, "")


async def test_messages_that_were_sent_ahead_are_answered_after_their_caller_has_said_all(service: Service) -> None:
    batches = Batches(service)
    await batches.send(about("no key"))
    await batches.send(about(UNKNOWN_KEY), about(UNKNOWN_KEY))
    await batches.call.done_writing()
    assert [len(await batches.next()) for _ in range(2)] == [1, 2]
    assert await ended(batches.call) == (Code.OK, "")


async def test_what_a_call_changed_is_so_for_the_next_batch_of_an_open_stream(service: Service) -> None:
    """Rule 5: the key that a Revoke replaced is refused once it has returned, and the new one works."""
    old = (await issue(service)).api_key
    batches = Batches(service)
    for _ in range(10):
        assert await batches.verdicts(old) == [pb.VERDICT_ALLOWED]
        new = (await revoke(service)).api_key
        assert await batches.verdicts(old, new) == [pb.VERDICT_INVALID_KEY, pb.VERDICT_ALLOWED]
        old = new


async def test_a_key_that_is_issued_between_two_batches_is_allowed_in_the_second(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = generate_api_key()
    batches = Batches(service)
    assert await batches.verdicts(probed.reveal()) == [pb.VERDICT_INVALID_KEY]
    monkeypatch.setattr("authsvc.api.key_service.generate_api_key", lambda: probed)
    await issue(service)
    assert await batches.verdicts(probed.reveal()) == [pb.VERDICT_ALLOWED]


async def test_a_batch_that_is_too_large_ends_the_stream(
    service: Service, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """What came before it is answered, and what comes after it is not."""
    gate = Gate(
        monkeypatch
    )  # all is written by then: for a client that writes to a stream that ends, its status is lost
    batches = Batches(service)
    await batches.send(*[about(UNKNOWN_KEY)] * 256)
    await batches.send(*[about(UNKNOWN_KEY)] * 257)
    await batches.send(about(UNKNOWN_KEY))
    gate.open()
    assert len(await batches.next()) == 256
    assert await ended(batches.call) == (Code.INVALID_ARGUMENT, "257 requests: 256 are the most")
    assert [line["status"] for line in logged if line.get("method") == METHOD] == ["OK", "INVALID_ARGUMENT"]


async def test_bytes_that_are_no_message_end_the_stream(service: Service, logged: list[Any]) -> None:
    begin: Any = service.channel.stream_stream(METHOD)
    call = begin(metadata=service.token("bridge"))
    await call.write(b"")
    assert await call.read() == b"", "an empty batch"
    await call.write(b"\xff\xff\xff")
    assert await ended(call) == (Code.INVALID_ARGUMENT, "the request is not a message of this method")


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
async def test_a_stranger_is_refused_before_a_batch_comes(service: Service, metadata: Any) -> None:
    code, _ = await ended(service.keys.StreamValidate(metadata=metadata))
    assert code == Code.UNAUTHENTICATED


@pytest.mark.parametrize("role", ["bridge", "admin"])
async def test_bridges_and_admins_may_ask(service: Service, role: str) -> None:
    assert await Batches(service, role).verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]


async def test_one_stream_too_many_is_refused_and_calls_are_answered(tmp_path: Path, logged: list[Any]) -> None:
    """The streams that there are go on."""
    async with running(tmp_path / "state", CallLimits(validate_streams_max=4)) as service:
        streams = [Batches(service) for _ in range(3)]
        for batches in streams:
            assert await batches.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
        code, text = await ended(Batches(service).call)
        assert (code, text) == (Code.RESOURCE_EXHAUSTED, "too many such calls are open already")
        assert await batch_verdicts(service, UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
        for batches in streams:
            assert await batches.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]


@pytest.mark.parametrize("end", ["said all", "cancelled", "refused batch", "connection lost"])
async def test_a_stream_that_ended_leaves_its_place_to_another(tmp_path: Path, logged: list[Any], end: str) -> None:
    async with running(tmp_path / "state", CallLimits(validate_streams_max=1)) as service:
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(service.address), own_connection) as channel:
            batches = Batches(service, keys=type(service.keys)(channel))
            assert await batches.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
            match end:
                case "said all":
                    await batches.call.done_writing()
                case "cancelled":
                    batches.call.cancel()
                case "refused batch":
                    await batches.send(*[about(UNKNOWN_KEY)] * 257)
                case "connection lost":
                    await channel.close()
            await until_there_is_room(service)


async def test_a_stream_that_is_cancelled_with_a_batch_under_way_leaves_its_place_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    async with running(tmp_path / "state", CallLimits(validate_streams_max=1)) as service:
        gate = Gate(monkeypatch)
        batches = Batches(service)
        await batches.send(about(UNKNOWN_KEY))
        await gate.reached.wait()
        batches.call.cancel()
        gate.open()
        await until_there_is_room(service)


async def test_a_stream_that_was_asked_nothing_for_long_is_ended(tmp_path: Path, logged: list[Any]) -> None:
    """It leaves its place to another, and its connection may close."""
    limits = CallLimits(validate_streams_max=1, connection_idle_seconds=0.2)
    async with running(tmp_path / "state", limits) as service:
        batches = Batches(service)
        assert await batches.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
        assert (await ended(batches.call))[0] == Code.OK
        await until_there_is_room(service)


async def test_a_failure_of_ours_ends_the_stream_and_shows_its_text_to_nobody(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: KeyStore, digests: Any) -> None:
        raise RuntimeError(digests[0].hex())

    batches = Batches(service)
    assert await batches.verdicts("no key") == [pb.VERDICT_INVALID_KEY]
    monkeypatch.setattr(KeyStore, "lookup", broken)
    with capture_logs() as lines:
        await batches.send(about(UNKNOWN_KEY))
        assert await ended(batches.call) == (Code.INTERNAL, "internal error")
    (line,) = (line for line in lines if line["event"] == "call_failed")
    assert (line["log_level"], line["method"], line["error"]) == ("error", METHOD, "RuntimeError")
    assert hashlib.sha256(UNKNOWN_KEY.encode()).hexdigest() not in str(lines)


async def test_each_batch_is_a_line_in_the_request_log(service: Service, logged: list[Any]) -> None:
    """As it would be as a call."""
    batches = Batches(service)
    for count in range(1, 4):
        await batches.verdicts(UNKNOWN_KEY)
        await until("it is told", lambda count=count: sum(line.get("method") == METHOD for line in logged) == count)
    assert {line["status"] for line in logged if line.get("method") == METHOD} == {"OK"}


async def test_an_idle_stream_does_not_hold_up_the_end_of_the_service(tmp_path: Path, logged: list[Any]) -> None:
    """Neither one that was asked something nor one that was not."""
    limits = CallLimits(drain_seconds=3600.0, last_responses_seconds=3600.0)
    async with running(tmp_path / "state", limits) as service:
        silent, idle = Batches(service), Batches(service)
        assert await idle.verdicts(UNKNOWN_KEY) == [pb.VERDICT_INVALID_KEY]
        service.stop.set()
        assert (await ended(idle.call))[0] == Code.OK
        await ended(silent.call)


async def test_a_batch_under_way_when_the_service_stops_is_answered_and_then_the_stream_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    """One that was sent ahead is not: it is asked again elsewhere."""
    async with running(tmp_path / "state", CallLimits(last_responses_seconds=0.05)) as service:
        api_key = (await issue(service)).api_key
        gate = Gate(monkeypatch)
        batches = Batches(service)
        await batches.send(about(api_key), about("no key"))
        await batches.send(about(api_key))
        await gate.reached.wait()
        service.stop.set()
        await until_it_stops(service)
        answers = asyncio.create_task(batches.next())
        ended, _ = await asyncio.wait([answers], timeout=0.2)  # longer than what is answered has time to be sent
        assert not ended
        gate.open()
        assert [answer.verdict for answer in await answers] == [pb.VERDICT_ALLOWED, pb.VERDICT_INVALID_KEY]
        assert await batches.call.read() is grpc.aio.EOF
        assert await batches.call.code() == Code.OK


async def test_without_its_database_keys_have_no_verdict_and_the_stream_goes_on(
    private_postgres: PostgresServer, tmp_path: Path
) -> None:
    """What needs no look at it is answered all the same."""
    async with replica(tmp_path / "state", private_postgres.url("migrated")) as service:
        api_key = (await issue(service)).api_key
        batches = Batches(service)
        assert await batches.verdicts(api_key, "no key") == [pb.VERDICT_ALLOWED, pb.VERDICT_INVALID_KEY]
        await asyncio.to_thread(private_postgres.stop)
        for _ in range(2):
            assert await batches.verdicts(api_key, "no key") == [pb.VERDICT_UNSPECIFIED, pb.VERDICT_INVALID_KEY]
        await asyncio.to_thread(private_postgres.start)

        async def is_answered() -> bool:
            return (await batches.verdicts(api_key)) == [pb.VERDICT_ALLOWED]

        await until("the database is back", is_answered)
