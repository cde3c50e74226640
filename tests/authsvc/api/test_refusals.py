"""What callers without a token make the service do and log: nothing that they can call fails, or fills the disk."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from authsvc.api.health import HealthService
from authsvc.api.limits import CallLimits
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import project_service_pb2 as project_pb2
from tests.authsvc.api.raw_http2 import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    flood,
    read_until,
    unread_call,
)
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import Watcher
from tests.waiting import until

Code = grpc.StatusCode
VALIDATE = "/authsvc.v1.KeyService/Validate"
WATCH_LEASES = "/authsvc.v1.KeyService/Watch"
REVOKE = "/authsvc.v1.KeyService/Revoke"
NEVER = CallLimits(turns_per_second=0.001, turn_seconds_max=1e9)
"""Strangers wait for their turn longer than any test."""
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """Give the lines that the service logs, and fail for an error in gRPC's own log, which is not thinned."""
    with capture_logs() as lines:
        yield lines
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def errors(logged: list[Any]) -> list[Any]:
    return [line for line in logged if line["log_level"] == "error"]


async def reflected_methods(service: Service) -> list[str]:
    """Return every method of every service that reflection lists."""

    async def ask(**fields: str) -> Any:
        async def requests() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(**fields)

        stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        (answer,) = [answer async for answer in stub.ServerReflectionInfo(requests())]
        return answer

    methods = []
    for name in [found.name for found in (await ask(list_services="")).list_services_response.service]:
        for text in (await ask(file_containing_symbol=name)).file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(text)
            for described in file.service:
                if f"{file.package}.{described.name}" == name:
                    methods += [f"/{name}/{method.name}" for method in described.method]
    return methods


async def status_of_first_answer(service: Service, method: str) -> grpc.StatusCode:
    """Call a method with an empty message; return OK when it answers."""
    begin: Any = service.channel.stream_stream(method)
    while True:
        call = begin()
        try:
            await call.write(b"")
            break
        except grpc.aio.AioRpcError:  # it was refused before that, and the client then loses its status
            call.cancel()
    try:
        await call.done_writing()
        await call.read()
        return await call.code() if call.done() else Code.OK
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        call.cancel()


async def until_there_is_room(service: Service, method: str) -> None:
    async def is_answered() -> bool:
        return await status_of_first_answer(service, method) is Code.OK

    await until("the service has seen that a stranger has gone", is_answered)


async def test_every_method_that_reflection_lists_answers_or_refuses_a_stranger(
    service: Service, logged: list[Any]
) -> None:
    methods = await reflected_methods(service)
    statuses = {method: await status_of_first_answer(service, method) for method in methods}
    open_methods = {method for method, status in statuses.items() if status is Code.OK}
    assert open_methods == {CHECK, WATCH, "/grpc.health.v1.Health/List", REFLECTION}
    assert {statuses[method] for method in statuses.keys() - open_methods} == {Code.UNAUTHENTICATED}
    assert sum(method.startswith("/authsvc.v1.") for method in methods) == 13
    assert not errors(logged)


async def test_a_method_that_a_newer_grpc_describes_is_unimplemented(
    service: Service, logged: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servicers inherit from generated code, which raises for what they leave out."""
    monkeypatch.delattr(HealthService, "List")
    async with running(tmp_path / "newer") as newer:
        assert await status_of_first_answer(newer, "/grpc.health.v1.Health/List") == Code.UNIMPLEMENTED
    assert not errors(logged)


@pytest.mark.parametrize("method", [CHECK, WATCH, REFLECTION])
async def test_a_stranger_who_takes_no_answer_loses_its_connection_and_its_place(
    tmp_path: Path, logged: list[Any], method: str
) -> None:
    """GRPC would count its call until it goes, which it need not: it answers pings, and has no room for the rest."""
    limits = CallLimits(open_calls_max=1, open_stream_seconds=0.5, untaken_seconds=0.1)
    async with running(tmp_path / "state", limits) as service, unread_call(service, method) as closed:
        await closed
        await until_there_is_room(service, method)
    assert not errors(logged)
    assert [line["address"] for line in logged if line["event"] == "connections_closed"] == ["127.0.0.1"]


@pytest.mark.parametrize("method", [CHECK, WATCH, REFLECTION])
async def test_a_stranger_who_leaves_without_its_answer_leaves_no_error(
    tmp_path: Path, logged: list[Any], method: str
) -> None:
    # A few places: calls that look whether one is free may hold their own for a moment after their end. It looks often.
    async with running(tmp_path / "state", CallLimits(open_calls_max=4, turns_per_second=1e9)) as service:
        for _ in range(10):
            async with unread_call(service, method):
                pass
            await until_there_is_room(service, method)
    assert not errors(logged)


async def test_a_stranger_who_takes_all_that_it_gets_leaves_room_for_other_hosts(tmp_path: Path) -> None:
    """So that whoever looks whether the service is well finds out."""
    async with running(tmp_path / "state", CallLimits(open_calls_max=4)) as service, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(unread_call(service, CHECK))
        assert await status_of_first_answer(service, CHECK) == Code.RESOURCE_EXHAUSTED
        async with asyncio.timeout(60):
            await stack.enter_async_context(unread_call(service, CHECK, host="127.0.0.2"))


async def until_refused(logged: list[Any], count: int) -> None:
    """Return when so many refusals are under way, or over: they are logged at once, or within a second."""
    await until(
        "it is told", lambda: sum(line["count"] for line in logged if line["event"] == "calls_refused") == count
    )


async def refusal(service: Service, token: str = "wrong") -> tuple[grpc.StatusCode, str]:
    """Ask with a wrong token, on a connection of one's own, and return what becomes of it."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(str(service.address), own_connection) as channel:
        call = type(service.keys)(channel).Validate(
            pb.ValidateRequest(), metadata=(("authorization", f"Bearer {token}"),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code(), caught.value.details() or ""


async def validate(service: Service, role: str = "bridge") -> None:
    answer = await service.keys.Validate(pb.ValidateRequest(), metadata=service.token(role))
    assert answer.verdict == pb.VERDICT_INVALID_KEY


@pytest.mark.parametrize("method", [VALIDATE, REVOKE, CHECK, "/authsvc.v1.KeyService/Nothing", "/nobody.Knows/It"])
async def test_a_stranger_who_reads_nothing_loses_its_connection(
    tmp_path: Path, logged: list[Any], method: str
) -> None:
    """Whatever it calls; not for the number of its calls, nor by TCP, which would take its time."""
    limits = CallLimits(turns_per_second=1e9, untaken_seconds=0.2, keepalive_timeout_seconds=3600)
    async with running(tmp_path / "state", limits) as service, flood(service) as stranger:
        stranger.fill()

        async def is_closed() -> bool:
            stranger.call(method)
            await asyncio.sleep(0.01)  # the connection is full after some of them
            return any(line["event"] == "connections_closed" for line in logged)

        await until("the service has closed the connection", is_closed)
        await stranger.until_closed()
        await validate(service)


@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer wrong"}], ids=["no token", "wrong token"])
@pytest.mark.parametrize("method", [VALIDATE, WATCH_LEASES, REVOKE, "/authsvc.v1.KeyService/Nothing"])
async def test_a_refusal_waits_for_its_turn_and_whoever_has_a_token_for_none(
    tmp_path: Path, logged: list[Any], method: str, metadata: dict[str, str]
) -> None:
    """From the same address."""
    async with running(tmp_path / "state", NEVER) as service, flood(service) as stranger:
        stranger.call(method, 3, **metadata)
        await until_refused(logged, 3)
        answer = asyncio.create_task(read_until(stranger.reader, HEADERS, END_HEADERS | END_STREAM))
        for _ in range(100):
            await validate(service)
            await service.projects.ListProjects(project_pb2.ListProjectsRequest(), metadata=service.token())
        assert not answer.done()
        answer.cancel()


async def test_what_needs_no_token_has_turns_too(tmp_path: Path) -> None:
    """An answer each: a stream of reflection that asks on and on would keep all others waiting."""

    async def asking() -> AsyncIterator[Any]:
        while True:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

    limits = CallLimits(turns_per_second=5, turn_seconds_max=3600)
    async with running(tmp_path / "state", limits) as service:
        answers = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo(asking())
        started = time.monotonic()
        for _ in range(8):  # five at once, three in the time of three
            await answers.read()
        assert time.monotonic() - started > 0.5
        answers.cancel()


async def test_a_stranger_who_is_refused_too_often_loses_its_connection_and_no_other(
    tmp_path: Path, logged: list[Any]
) -> None:
    """Not the one with a token from the same address, nor that of a stranger from another one."""
    limits = CallLimits(turns_per_second=2, turn_seconds_max=0.1)
    async with (
        running(tmp_path / "state", limits) as service,
        flood(service) as one,
        flood(service, "127.0.0.2") as other,
    ):
        watcher = Watcher(service)
        await watcher.attach()
        one.call(VALIDATE, 10)
        await one.until_closed()
        other.call(VALIDATE)
        assert b"a bearer token" in await read_until(other.reader, HEADERS, END_HEADERS | END_STREAM)
        await watcher.renew()
        await watcher.lease()
    assert {line["address"] for line in logged if line["event"] == "connections_closed"} == {"127.0.0.1"}


async def test_refused_calls_count_until_they_are_over_and_one_too_many_costs_its_connection(
    tmp_path: Path, logged: list[Any]
) -> None:
    """In all, and once three quarters of the places are taken, by address."""
    limits = replace(NEVER, refused_calls_max=16)
    async with running(tmp_path / "state", limits) as service, AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(flood(service, f"127.0.0.{number}")) for number in range(1, 8)]
        strangers[0].call(VALIDATE, 11)
        await until_refused(logged, 11)
        for stranger in strangers[1:6]:  # the first of them takes the last place that is anybody's
            stranger.call(VALIDATE)
        await until_refused(logged, 16)
        strangers[6].call(VALIDATE)
        strangers[0].call(VALIDATE)
        for stranger in (strangers[6], strangers[0]):
            await stranger.until_closed()
        await validate(service)


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_trusted_proxys_callers_are_told_apart_and_it_keeps_its_connection(
    tmp_path: Path, logged: list[Any], is_trusted: bool
) -> None:
    """What anybody else says in these headers is not believed."""
    limits = CallLimits(turns_per_second=1, turn_seconds_max=0.05)
    variables = {"AUTHSVC_TRUSTED_PROXIES": "127.0.0.0/8"} if is_trusted else {}
    async with running(tmp_path / "state", limits, **variables) as service, flood(service) as proxy:
        proxy.call(VALIDATE, 1, **{"x-forwarded-for": "10.9.9.9, 192.0.2.7"})
        proxy.call(VALIDATE, forwarded='for="[2001:db8::7]:4711";proto=https')
        if is_trusted:
            for _ in range(2):
                await read_until(proxy.reader, HEADERS, END_HEADERS | END_STREAM)
            await until_refused(logged, 2)
        else:
            await proxy.until_closed()
    seen = {line["address"] for line in logged if line["event"] == "calls_refused"}
    assert seen == ({"192.0.2.7", "2001:db8::7"} if is_trusted else {"127.0.0.1"})


@pytest.mark.parametrize(
    "limits",
    [replace(NEVER, refused_calls_max=16), CallLimits(turns_per_second=0.001, turn_seconds_max=3000)],
    ids=["more than have a place", "more than will have a turn"],
)
async def test_a_trusted_proxys_caller_who_is_refused_too_often_waits_and_costs_no_connection(
    tmp_path: Path, logged: list[Any], limits: CallLimits
) -> None:
    """Others share it; and what is refused at once is asked again at once."""
    async with (
        running(tmp_path / "state", limits, AUTHSVC_TRUSTED_PROXIES="127.0.0.2") as service,
        flood(service, "127.0.0.2") as proxy,
    ):
        proxy.call(VALIDATE, 20, **{"x-forwarded-for": "192.0.2.7"})
        await until_refused(logged, 20)
        answer = asyncio.create_task(read_until(proxy.reader, HEADERS, END_HEADERS | END_STREAM))
        for _ in range(100):
            await validate(service)
        assert not answer.done()
        answer.cancel()
    assert not [line for line in logged if line["event"] == "connections_closed"]


async def test_a_flood_of_one_method_leaves_others_their_turn(service: Service) -> None:
    """GRPC hands calls over in their order, of each method by itself."""
    async with AsyncExitStack() as stack:
        for number in range(2, 22):
            stranger = await stack.enter_async_context(flood(service, f"127.0.0.{number}"))
            stranger.call(VALIDATE, 100)
        for _ in range(10):
            await service.projects.ListProjects(project_pb2.ListProjectsRequest(), metadata=service.token(), timeout=20)


async def test_reflection_is_for_this_machine_alone_unless_it_is_switched_on(tmp_path: Path) -> None:
    reachable = {"AUTHSVC_LISTEN": "0.0.0.0:0", "AUTHSVC_ALLOW_INSECURE": "true"}
    for variables, expected in (
        ({}, Code.OK),
        (reachable, Code.UNIMPLEMENTED),
        (reachable | {"AUTHSVC_REFLECTION": "true"}, Code.OK),
        ({"AUTHSVC_REFLECTION": "false"}, Code.UNIMPLEMENTED),
    ):
        async with running(tmp_path / "state", **variables) as service:
            assert await status_of_first_answer(service, REFLECTION) == expected, variables


async def test_failures_that_strangers_cause_are_logged_once_a_second_with_their_number(
    service: Service, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: HealthService, name: str) -> Any:
        raise RuntimeError(name)

    monkeypatch.setattr(HealthService, "_response", broken)
    stub = health_pb2_grpc.HealthStub(service.channel)
    started = time.monotonic()
    for _ in range(30):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest())
        assert (caught.value.code(), caught.value.details()) == (Code.INTERNAL, "internal error")
    lines = errors(logged)
    assert 1 <= len(lines) <= 1 + time.monotonic() - started
    assert (lines[0]["event"], lines[0]["method"], lines[0]["count"]) == ("call_failed", CHECK, 1)
