"""A holder of leases by hand, against a running service, and the calls whose changes it is told of."""

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from authsvc.api.limits import CallLimits
from authsvc.revocation.limits import RevocationLimits
from authsvc.v1 import key_service_pb2 as pb
from tests.authsvc.conftest import Service, running

HOLDER = "holder-0123456789"


class Watcher:
    """One holder and its stream: it says and acknowledges what a test tells it to, and nothing by itself."""

    def __init__(self, service: Service, *, name: str = "bridge-1", role: str = "bridge", keys: Any = None) -> None:
        """`keys` is a stub on a channel of its own."""
        self.service = service
        self.holder_id = secrets.token_hex(16)
        self.name = name
        self.epoch = ""
        self.applied_revision = 0
        self._role = role
        self._keys = keys
        self._sequence = 0
        self.reopen()

    def reopen(self) -> None:
        """Open another stream, and forget the one there was."""
        self.call: Any = (self._keys or self.service.keys).Watch(metadata=self.service.token(self._role))

    async def renew(self, *, release: bool = False) -> None:
        self._sequence += 1
        request = pb.WatchRequest(
            epoch=self.epoch,
            holder_id=self.holder_id,
            name=self.name,
            sequence=self._sequence,
            applied_revision=self.applied_revision,
            release=release,
        )
        await self.call.write(request)

    async def attach(self) -> None:
        """Take the first reset and acknowledge it: from here on there is a lease that counts."""
        await self.renew()
        reset = (await self.next()).reset
        self.epoch, self.applied_revision = reset.epoch, reset.revision
        await self.lease()
        await self.acknowledge(reset.revision)

    async def acknowledge(self, revision: int) -> None:
        self.applied_revision = revision
        await self.renew()
        await self.lease()

    async def next(self) -> pb.WatchResponse:
        response = await self.call.read()
        assert isinstance(response, pb.WatchResponse), "the stream is over"
        return response

    async def lease(self) -> pb.LeaseEvent:
        """Return the answer to the last keep-alive."""
        while True:
            event = await self.next()
            if event.HasField("lease") and event.lease.sequence == self._sequence:
                return event.lease

    async def change(self) -> pb.ChangeEvent:
        """Return the next change."""
        while True:
            event = await self.next()
            if event.HasField("change"):
                return event.change


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Read what was on its way, and return how the stream ended."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return await call.code(), ""


def wait(seconds: float | None) -> Duration | None:
    return None if seconds is None else Duration(seconds=int(seconds), nanos=round(math.fmod(seconds, 1) * 1e9))


async def issue(
    service: Service, project_id: str = "demo", wait_seconds: float | None = None, timeout: float | None = None
) -> pb.IssueResponse:
    request = pb.IssueRequest(project_id=project_id, wait=wait(wait_seconds))
    answer: pb.IssueResponse = await service.keys.Issue(request, metadata=service.token(), timeout=timeout)
    return answer


async def revoke(
    service: Service, key_id: str | None = None, wait_seconds: float | None = None, timeout: float | None = None
) -> pb.RevokeResponse:
    request = pb.RevokeRequest(project_id="demo", key_id=key_id, wait=wait(wait_seconds))
    answer: pb.RevokeResponse = await service.keys.Revoke(request, metadata=service.token(), timeout=timeout)
    return answer


@asynccontextmanager
async def replica(
    state_dir: Path, url: str, revocation: RevocationLimits = RevocationLimits()
) -> AsyncIterator[Service]:
    """Run a service on a PostgreSQL database that is migrated."""
    async with running(state_dir, CallLimits(), revocation, AUTHSVC_DATABASE_URL=url) as service:
        yield service
