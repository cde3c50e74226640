"""gRPC's health protocol: open to everybody, and nobody who asks keeps others, or the end of the service, waiting."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.authsvc.api.raw_http2 import unread_call
from tests.authsvc.conftest import Service

Status = health_pb2.HealthCheckResponse
NAMES = [
    "",
    "grpc.health.v1.Health",
    "authsvc.v1.KeyService",
    "authsvc.v1.ProjectService",
    "authsvc.v1.OperationsService",
]
SECONDS_MAX = 8.0
"""Less than the ten seconds after which calls under way are cut at the end of the service."""


@pytest.fixture
def health(service: Service) -> Any:
    return health_pb2_grpc.HealthStub(service.channel)


def asking(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize("name", NAMES)
async def test_each_service_is_healthy_and_so_is_the_whole(health: Any, name: str) -> None:
    assert (await health.Check(asking(name))).status == Status.SERVING


async def test_all_of_them_are_listed(health: Any) -> None:
    listed = await health.List(health_pb2.HealthListRequest())
    assert {name: answer.status for name, answer in listed.statuses.items()} == dict.fromkeys(NAMES, Status.SERVING)


async def test_what_is_not_served_is_not_found(health: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health.Check(asking("nobody"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_who_watches_hears_that_the_service_stops_whoever_else_reads_nothing(
    service: Service, health: Any
) -> None:
    async with unread_call(service, "/grpc.health.v1.Health/Watch"), asyncio.timeout(SECONDS_MAX):
        streams = {name: health.Watch(asking(name)) for name in (*NAMES, "nobody")}
        for name, stream in streams.items():
            assert (await stream.read()).status == (Status.SERVICE_UNKNOWN if name == "nobody" else Status.SERVING)
        service.stop.set()
        for name in NAMES:
            assert (await streams[name].read()).status == Status.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError):  # nothing changes for what is not known; the service ends
            await streams["nobody"].read()
