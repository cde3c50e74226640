"""The key service as its callers see it: in this process, on a free port, on a real SQLite file."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from authsvc.api.limits import CallLimits
from authsvc.app import serve
from authsvc.config import Config
from authsvc.revocation.limits import RevocationLimits
from authsvc.runtime.environment import Address
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from authsvc.v1 import operations_service_pb2_grpc as operations_pb2_grpc
from authsvc.v1 import project_service_pb2_grpc as project_pb2_grpc
from tests.migrated import make_state_dir


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and an open channel to it."""

    address: Address
    state_dir: Path
    channel: grpc.aio.Channel
    stop: asyncio.Event
    keys: Any
    projects: Any
    operations: Any

    def token(self, role: str = "admin") -> tuple[tuple[str, str], ...]:
        """Return the metadata that a caller of this role sends."""
        return (("authorization", "Bearer " + (self.state_dir / f"{role}-token").read_text().strip()),)


@asynccontextmanager
async def running(
    state_dir: Path,
    limits: CallLimits = CallLimits(),
    revocation: RevocationLimits = RevocationLimits(),
    /,
    **variables: str,
) -> AsyncIterator[Service]:
    """Run a service with this environment; raise what stops it from starting. A new one finds a migrated database."""
    if "AUTHSVC_DATABASE_URL" not in variables:
        make_state_dir(state_dir)
    environ = {"AUTHSVC_LISTEN": "127.0.0.1:0", "AUTHSVC_STATE_DIR": str(state_dir)} | variables
    stop = asyncio.Event()
    started: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        serving = serve(Config.from_environment(environ), stop, started.set_result, limits, revocation)
        task = asyncio.create_task(serving)
        waiting: list[asyncio.Future[Any]] = [task, started]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        address = started.result()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(address)))
        keys, projects = pb_grpc.KeyServiceStub(channel), project_pb2_grpc.ProjectServiceStub(channel)
        operations = operations_pb2_grpc.OperationsServiceStub(channel)
        try:
            yield Service(address, state_dir, channel, stop, keys, projects, operations)
        finally:
            stop.set()
            await task


@pytest.fixture
def revocation() -> RevocationLimits:
    """Return the limits of `service`, for tests to override: parametrize it."""
    return RevocationLimits()


@pytest.fixture
async def service(tmp_path: Path, revocation: RevocationLimits) -> AsyncIterator[Service]:
    """Run a service with its defaults."""
    async with running(tmp_path / "state", CallLimits(), revocation) as service:
        yield service
