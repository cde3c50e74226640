"""What callers can take up of the key service, with a token or without one: others are served whatever they do."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from structlog.testing import capture_logs

from authsvc.api.limits import CallLimits
from authsvc.client import KeyValidator
from authsvc.client.verdicts import INVALID_KEY, Verdict
from authsvc.storage.key_store import KeyStore
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import project_service_pb2 as project_pb2
from tests.authsvc.api.raw_http2 import (
    ACK,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    PING,
    SETTINGS,
    frame,
    raw_connection,
    read_until,
    unread_call,
)
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import Watcher
from tests.e2e.certificates import Authority
from tests.waiting import until

Code = grpc.StatusCode
CHECK = "/grpc.health.v1.Health/Check"
PAYLOAD = b"01234567"


async def status_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def validate(service: Service, **options: Any) -> Any:
    return await service.keys.Validate(pb.ValidateRequest(), metadata=service.token("bridge"), **options)


def begin_half_open(service: Service, method: str, role: str | None) -> Any:
    async def nothing() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield b""

    begin: Any = service.channel.stream_unary(method)
    return begin(nothing(), metadata=service.token(role) if role else None)


@asynccontextmanager
async def half_open(service: Service, method: str, role: str | None = None) -> AsyncIterator[Any]:
    """Begin a call whose message is never sent."""
    call = begin_half_open(service, method, role)
    try:
        yield call
    finally:
        call.cancel()


@asynccontextmanager
async def watching_health(service: Service, count: int) -> AsyncIterator[list[Any]]:
    """Hold streams of the health service, each of which is served."""
    stub = health_pb2_grpc.HealthStub(service.channel)
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            stream = stub.Watch(health_pb2.HealthCheckRequest())
            stack.callback(stream.cancel)
            streams.append(stream)
        for stream in streams:
            assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        yield streams


async def test_there_are_open_files_for_as_many_callers_as_are_served(tmp_path: Path) -> None:
    """Most systems allow a process 1024 unless it asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with running(tmp_path / "state", CallLimits(connections_max=300)):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_streams_without_a_token_leave_room_for_all_other_calls(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    async with watching_health(service, CallLimits().open_calls_max * 3 // 4) as streams:
        another = stub.Watch(health_pb2.HealthCheckRequest())
        assert await status_of(another.read()) == Code.RESOURCE_EXHAUSTED
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert (await validate(service)).verdict == pb.VERDICT_INVALID_KEY
        streams[0].cancel()

        async def is_watched() -> bool:
            another = stub.Watch(health_pb2.HealthCheckRequest())
            try:
                return bool((await another.read()).status == health_pb2.HealthCheckResponse.SERVING)
            except grpc.aio.AioRpcError:
                return False
            finally:
                another.cancel()

        await until("the service has seen that a stream has gone", is_watched)


async def test_a_stream_without_a_token_ends_after_a_while(tmp_path: Path) -> None:
    async def silent() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    async with running(tmp_path / "state", CallLimits(open_stream_seconds=0.05)) as service:
        async with watching_health(service, 1) as (stream,):
            assert await status_of(stream.read()) == Code.DEADLINE_EXCEEDED
        reflecting = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo(silent())
        assert await status_of(reflecting.read()) == Code.DEADLINE_EXCEEDED


async def test_a_call_without_a_token_whose_message_never_comes_is_ended(tmp_path: Path) -> None:
    limits = CallLimits(call_seconds=0.05)
    async with running(tmp_path / "state", limits) as service, half_open(service, CHECK) as call:
        assert await status_of(call) == Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", ["KeyService/Validate", "KeyService/Watch", "ProjectService/ListProjects"])
async def test_a_caller_is_refused_before_its_message_comes(service: Service, method: str) -> None:
    async with half_open(service, f"/authsvc.v1.{method}") as call:
        assert await status_of(call) == Code.UNAUTHENTICATED


async def test_a_call_without_a_deadline_is_given_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(self: KeyStore, **_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(KeyStore, "projects", stuck)
    async with running(tmp_path / "state", CallLimits(call_seconds=0.05)) as service:
        call = service.projects.ListProjects(project_pb2.ListProjectsRequest(), metadata=service.token())
        assert await status_of(call) == Code.DEADLINE_EXCEEDED


async def hold(stack: AsyncExitStack, service: Service, method: str, role: str, count: int) -> list[Any]:
    """Hold so many calls that are served, which is as many as there may be, and wait for their message."""
    calls = [begin_half_open(service, method, role) for _ in range(count)]
    stack.callback(lambda: [call.cancel() for call in calls])

    async def are_served() -> bool:
        another = begin_half_open(service, method, role)
        await asyncio.wait([asyncio.ensure_future(another.code())], timeout=0.05)
        is_refused: bool = another.done()
        another.cancel()
        for place, call in enumerate(calls):
            if call.done():  # that other one had its place
                calls[place] = begin_half_open(service, method, role)
                is_refused = False
        return is_refused

    await until("the calls are served", are_served)
    return calls


@pytest.mark.parametrize(
    ("method", "role", "limits"),
    [
        ("KeyService/Validate", "bridge", CallLimits(calls_max=4)),
        ("KeyService/BatchValidate", "bridge", CallLimits(calls_max=4)),
        ("ProjectService/ListProjects", "admin", CallLimits(admin_calls_max=4)),
    ],
)
async def test_calls_past_the_limit_are_refused_not_queued(
    tmp_path: Path, method: str, role: str, limits: CallLimits
) -> None:
    """Those of bridges and of admins each have theirs, so that a stolen bridge token cannot keep an admin out."""

    async def outcomes() -> dict[str, grpc.StatusCode]:
        calls = {
            "bridge": service.keys.Validate(pb.ValidateRequest(), metadata=service.token("bridge")),
            "admin": service.projects.ListProjects(project_pb2.ListProjectsRequest(), metadata=service.token()),
        }
        return {role: await call.code() for role, call in calls.items()}

    async with running(tmp_path / "state", limits) as service, AsyncExitStack() as stack:
        calls = await hold(stack, service, f"/authsvc.v1.{method}", role, 3)
        assert await outcomes() == {"bridge": Code.OK, "admin": Code.OK} | {role: Code.RESOURCE_EXHAUSTED}
        for call in calls:
            call.cancel()

        async def is_answered() -> bool:
            return await outcomes() == {"bridge": Code.OK, "admin": Code.OK}

        await until("the service has seen that calls have gone", is_answered)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("KeyService/Validate", Code.UNAVAILABLE),  # its connection is closed: a timer of its own would cost too much
        ("KeyService/BatchValidate", Code.UNAVAILABLE),
        ("ProjectService/ListProjects", Code.DEADLINE_EXCEEDED),
    ],
)
async def test_a_call_with_a_token_whose_message_never_comes_is_ended(
    tmp_path: Path, method: str, expected: grpc.StatusCode
) -> None:
    limits = CallLimits(call_seconds=0.1, untaken_seconds=0.1)
    async with (
        running(tmp_path / "state", limits) as service,
        half_open(service, f"/authsvc.v1.{method}", "admin") as call,
    ):
        assert await status_of(call) == expected


@pytest.mark.parametrize("method", ["KeyService/Validate", "ProjectService/ListProjects"])
async def test_a_caller_with_a_token_who_takes_no_answers_loses_its_connection_and_its_place(
    tmp_path: Path, method: str
) -> None:
    limits = CallLimits(calls_max=1, admin_calls_max=1, call_seconds=0.1, untaken_seconds=0.1)
    async with running(tmp_path / "state", limits) as service:
        token = dict(service.token())
        async with unread_call(service, f"/authsvc.v1.{method}", **token) as closed:
            await closed
            await service.projects.ListProjects(project_pb2.ListProjectsRequest(), metadata=service.token())
            await validate(service)


async def test_a_connection_has_so_many_calls_at_a_time_and_the_rest_wait_at_the_callers_end(tmp_path: Path) -> None:
    limits = CallLimits(connection_calls_max=2)
    async with running(tmp_path / "state", limits) as service, watching_health(service, 2) as streams:
        assert await status_of(validate(service, timeout=0.1)) == Code.DEADLINE_EXCEEDED
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(service.address), own_connection) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        waiting = asyncio.create_task(validate(service))
        streams[0].cancel()
        assert (await waiting).verdict == pb.VERDICT_INVALID_KEY


async def is_taken(service: Service) -> bool:
    """Whether a new connection hears anything before it is closed."""
    async with raw_connection(service) as (reader, _):
        try:
            return bool(await reader.read(1))
        except ConnectionError:
            return False


async def test_connections_past_the_limit_are_closed_and_the_others_served(tmp_path: Path) -> None:
    limits = CallLimits(connections_max=3, look_seconds=3600.0)  # which are too many is another matter
    async with running(tmp_path / "state", limits) as service:
        await validate(service)
        async with raw_connection(service) as (one, _), raw_connection(service) as (other, _):
            await read_until(one, SETTINGS)
            await read_until(other, SETTINGS)
            assert not await is_taken(service)
            assert (await validate(service)).verdict == pb.VERDICT_INVALID_KEY
        await until("the service has seen that connections have gone", lambda: is_taken(service))


async def test_an_address_that_has_too_many_connections_loses_them_once_three_quarters_are_taken(
    tmp_path: Path,
) -> None:
    """Its sixteenth is left to it, and whoever is served keeps the connection, from the same address too."""
    async with running(tmp_path / "state", CallLimits(connections_max=32)) as service, AsyncExitStack() as stack:
        await validate(service)
        watcher = Watcher(service)
        await watcher.attach()
        many = [await stack.enter_async_context(raw_connection(service)) for _ in range(24)]
        other, _ = await stack.enter_async_context(raw_connection(service, "127.0.0.2"))
        await read_until(other, SETTINGS)
        ended = [asyncio.create_task(reader.read()) for reader, _ in many]
        async with asyncio.timeout(60):
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            while sum(not task.done() for task in ended) > 1:
                await asyncio.sleep(0)
        assert (await validate(service)).verdict == pb.VERDICT_INVALID_KEY
        await watcher.renew()
        await watcher.lease()
        for task in ended:
            task.cancel()


async def test_silent_connections_from_everywhere_make_room_for_whoever_comes(tmp_path: Path) -> None:
    async with running(tmp_path / "state", CallLimits(connections_max=32)) as service, AsyncExitStack() as stack:
        for number in range(2, 18):
            for _ in range(2):
                await stack.enter_async_context(raw_connection(service, f"127.0.0.{number}"))

        async def is_served() -> bool:
            try:
                return bool((await validate(service)).verdict == pb.VERDICT_INVALID_KEY)
            except grpc.aio.AioRpcError:
                return False

        await until("there is room", is_served)


async def test_a_connection_without_a_call_is_closed_after_a_while(tmp_path: Path) -> None:
    """Also one that never speaks: an open file is all that a stranger needs to keep others out."""
    async with running(tmp_path / "state", CallLimits(connection_idle_seconds=0.1)) as service:
        async with raw_connection(service) as (reader, _):
            assert (await read_until(reader, GOAWAY)).endswith(b"idle")
            await reader.read()
        silent, writer = await asyncio.open_connection(service.address.host, service.address.port)
        await silent.read()
        writer.close()


async def test_a_connection_that_does_not_finish_its_tls_handshake_is_closed(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path, "authority").certificate("127.0.0.1")
    variables = {"AUTHSVC_TLS_CERT": certificate, "AUTHSVC_TLS_KEY": key}
    async with running(tmp_path / "state", CallLimits(handshake_seconds=0.2), **variables) as service:
        for first in (b"", b"\x16\x03\x01"):
            silent, writer = await asyncio.open_connection(service.address.host, service.address.port)
            writer.write(first)
            async with asyncio.timeout(60):
                await silent.read()
            writer.close()


async def test_a_stream_keeps_its_connection_and_idle_clients_come_back_without_a_failed_call(tmp_path: Path) -> None:
    def connections() -> set[Any]:
        """Return the callers' ends of those that are open."""
        found = psutil.Process().net_connections("tcp")
        return {it.raddr for it in found if it.laddr.port == service.address.port and it.raddr}

    async with running(tmp_path / "state", CallLimits(connection_idle_seconds=0.1)) as service:
        token = (service.state_dir / "bridge-token").read_text().strip()
        issued = await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=service.token())
        with capture_logs() as logged:
            async with KeyValidator(service.address, token) as validator:
                await until("it has a lease", lambda: validator.has_lease and len(connections()) == 1)
                stream = connections()
                for number in range(3):
                    assert await validator.validate(f"dt_{number:024}") == INVALID_KEY
                    await until("the stream alone is connected", lambda: connections() == stream)
                assert (await validator.validate(issued.api_key)).verdict is Verdict.ALLOWED
        assert not [line for line in logged if line["event"] in ("key_service_lost", "lease_lost", "call_failed")]


async def test_a_caller_that_pings_too_often_is_cut_off(service: Service) -> None:
    async with raw_connection(service) as (reader, writer):
        writer.write(frame(PING, payload=PAYLOAD) * 10)
        assert int.from_bytes((await read_until(reader, GOAWAY))[4:8]) == ENHANCE_YOUR_CALM


async def test_a_caller_that_pings_seldom_enough_is_not_cut_off(tmp_path: Path) -> None:
    limits = CallLimits(ping_seconds_min=0)
    async with running(tmp_path / "state", limits) as service, raw_connection(service) as (reader, writer):
        for _ in range(10):
            writer.write(frame(PING, payload=PAYLOAD))
            assert await read_until(reader, PING, ACK) == PAYLOAD


async def test_a_caller_that_vanished_without_a_word_is_let_go(tmp_path: Path) -> None:
    """It has no call open, and does not answer pings."""
    limits = CallLimits(keepalive_seconds=0.1, keepalive_timeout_seconds=0.1)
    async with running(tmp_path / "state", limits) as service, raw_connection(service) as (reader, _):
        await reader.read()


@pytest.mark.parametrize("role", [None, "bridge"])
@pytest.mark.parametrize(
    "method",
    [CHECK, "/grpc.health.v1.Health/Watch", "/authsvc.v1.KeyService/Validate", "/authsvc.v1.KeyService/Watch"],
)
async def test_bytes_that_are_no_message_are_the_callers_fault(service: Service, method: str, role: str | None) -> None:
    call: Any = service.channel.unary_unary(method)
    with capture_logs() as logged, pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", metadata=service.token(role) if role else None)
    is_known = role is not None or method.startswith("/grpc.health")
    assert caught.value.code() == (Code.INVALID_ARGUMENT if is_known else Code.UNAUTHENTICATED)
    assert "Decode" not in str(caught.value.details())
    assert not [line for line in logged if line["log_level"] == "error"]
