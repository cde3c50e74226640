"""What callers without a token make the service do and log: nothing that they can call fails, or fills the disk."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from authsvc.health import HealthService
from authsvc.limits import CallLimits
from tests.authsvc.client.fake_key_service import until
from tests.authsvc.conftest import Service, running, until_true
from tests.authsvc.raw_http2 import unread_call

Code = grpc.StatusCode
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

    await until_true("the service has seen that a stranger has gone", is_answered)


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
async def test_a_stranger_who_takes_no_answer_keeps_its_place_and_leaves_no_error(
    tmp_path: Path, logged: list[Any], method: str
) -> None:
    """Its call is over for us after its time, and for gRPC, which counts it among all calls, when its caller goes."""
    limits = CallLimits(open_calls_max=1, call_seconds=0.5, open_stream_seconds=0.5)
    async with running(tmp_path / "state", limits) as service:
        async with unread_call(service, method):
            await until(lambda: any(line.get("status") == "DEADLINE_EXCEEDED" for line in logged))
            assert await status_of_first_answer(service, method) == Code.RESOURCE_EXHAUSTED
        await until_there_is_room(service, method)
    assert not errors(logged)


@pytest.mark.parametrize("method", [CHECK, WATCH, REFLECTION])
async def test_a_stranger_who_leaves_without_its_answer_leaves_no_error(
    tmp_path: Path, logged: list[Any], method: str
) -> None:
    # Two places: the call that looks whether one is free may hold its own for a moment after its end.
    async with running(tmp_path / "state", CallLimits(open_calls_max=2)) as service:
        for _ in range(10):
            async with unread_call(service, method):
                pass
            await until_there_is_room(service, method)
    assert not errors(logged)


async def test_a_stranger_who_takes_all_that_it_gets_leaves_room_for_other_hosts(tmp_path: Path) -> None:
    """So that whoever looks whether the service is well finds out."""
    async with running(tmp_path / "state", CallLimits(open_calls_host_max=2)) as service, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(unread_call(service, CHECK))
        assert await status_of_first_answer(service, CHECK) == Code.RESOURCE_EXHAUSTED
        async with asyncio.timeout(10):
            await stack.enter_async_context(unread_call(service, CHECK, host="127.0.0.2"))


async def test_failures_that_strangers_cause_are_logged_once_a_second_with_their_number(
    service: Service, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: HealthService, name: str) -> Any:
        raise RuntimeError(name)

    monkeypatch.setattr(HealthService, "_answer", broken)
    stub = health_pb2_grpc.HealthStub(service.channel)
    started = time.monotonic()
    for _ in range(30):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest())
        assert (caught.value.code(), caught.value.details()) == (Code.INTERNAL, "internal error")
    lines = errors(logged)
    assert 1 <= len(lines) <= 1 + time.monotonic() - started
    assert (lines[0]["event"], lines[0]["method"], lines[0]["count"]) == ("call_failed", CHECK, 1)
