"""An administrator of the key service, and the lives of the keys that it issued and revoked.

`Keys` remembers between which instants each key had to work, and from which instant on it must
not; `check` holds what bridges answered against that. All instants are Unix seconds of this
machine's clock, which is also the database's here.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import operations_service_pb2_grpc as operations_pb2_grpc
from tests.e2e.traffic import Attempt

_NEVER = float("inf")
_CALL_SECONDS_MAX = 90.0
PATIENCE_SECONDS = 25.0
"""To wait for confirmations that come in milliseconds, and on a busy machine when its scheduler says so."""


@dataclass(slots=True)
class Life:
    """One key's."""

    project: str
    key_id: str
    key: str
    valid_from: float
    """Requests that start after it must not be told that the key is invalid."""
    revoked_from: float = _NEVER
    """When the first call to revoke it began: requests that ended before must not be told so either."""
    dead_by: float = _NEVER
    """Requests that start after it must not be accepted: `effective_by`."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """A Revoke that returned, and how long it took."""

    response: pb.RevokeResponse
    next: Life | None
    """The project's next key; None when the key had been revoked before."""
    seconds: float
    returned_at: float
    effective_by: float

    @property
    def pending(self) -> set[str]:
        """The ids of the holders that have not confirmed."""
        return {holder.holder_id for holder in self.response.propagation.pending}

    @property
    def confirmed(self) -> set[str]:
        """The ids of those that have."""
        return {holder.holder_id for holder in self.response.propagation.confirmed}


class Keys:
    """All keys of a test, and what was promised of each."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}

    def add(self, life: Life) -> Life:
        """Remember a key."""
        self._lives[life.key] = life
        return life

    def revoked(self) -> list[Life]:
        """Return the keys that must not be accepted any more, sooner or later."""
        return [life for life in self._lives.values() if life.dead_by < _NEVER]

    def check(self, attempts: Iterable[Attempt]) -> None:
        """Fail when a key was accepted in a request that began after its end, or refused during its life."""
        for attempt in attempts:
            life = self._lives[attempt.key]
            late_seconds = attempt.started_at - life.dead_by
            assert not (attempt.status == 200 and late_seconds > 0), (
                f"{attempt.bridge} accepted {life.key_id} in a request that began {late_seconds:.6f} s too late"
            )
            was_valid = life.valid_from < attempt.started_at and attempt.ended_at < life.revoked_from
            assert not (attempt.status == 401 and was_valid), f"{attempt.bridge} refused {life.key_id}, which was valid"


class Administrator:
    """Calls one replica of the key service as an operator does; use it with `async with`."""

    def __init__(self, address: str, token: str, keys: Keys) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._service: Any = pb_grpc.KeyServiceStub(self._channel)
        self._operations: Any = operations_pb2_grpc.OperationsServiceStub(self._channel)
        self._keys = keys

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def issue(self, project: str) -> Life:
        """Issue a project's first key."""
        request = pb.IssueRequest(project_id=project)
        request.wait.FromNanoseconds(round(PATIENCE_SECONDS * 1e9))
        issued: pb.IssueResponse = await self._call(self._service.Issue, request)
        assert issued.propagation.effective, "nobody was to be waited for"
        valid_from = _unix_seconds(issued.propagation)
        assert valid_from <= time.time()
        return self._keys.add(Life(project, issued.key.key_id, issued.api_key, valid_from))

    async def revoke(self, life: Life, *, wait_seconds: float | None = None) -> Revocation:
        """Revoke a key by its id; raises grpc.aio.AioRpcError when there is no answer."""
        request = pb.RevokeRequest(project_id=life.project, key_id=life.key_id)
        if wait_seconds is not None:
            request.wait.FromNanoseconds(round(wait_seconds * 1e9))
        life.revoked_from = min(life.revoked_from, time.time())
        started = time.perf_counter()
        response: pb.RevokeResponse = await self._call(self._service.Revoke, request)
        seconds, returned_at = time.perf_counter() - started, time.time()
        effective_by = _unix_seconds(response.propagation)
        life.dead_by = min(life.dead_by, effective_by)
        if response.propagation.effective:
            assert effective_by <= returned_at
            assert not response.propagation.pending
        following = None
        if not response.already_revoked:
            following = self._keys.add(Life(life.project, response.key.key_id, response.api_key, returned_at))
        return Revocation(response, following, seconds, returned_at, effective_by)

    async def replace(self, project: str) -> Life:
        """Revoke whichever key is active, whose API key nobody knows, and return the next."""
        response: pb.RevokeResponse = await self._call(self._service.Revoke, pb.RevokeRequest(project_id=project))
        return self._keys.add(Life(project, response.key.key_id, response.api_key, time.time()))

    async def holders(self) -> operations_pb2.ListHoldersResponse:
        """Return who holds leases."""
        response: operations_pb2.ListHoldersResponse = await self._call(
            self._operations.ListHolders, operations_pb2.ListHoldersRequest()
        )
        return response

    async def holder(self, pid: int) -> pb.Holder | None:
        """Return the holder that a process is, if its lease is live and it has applied every change."""
        listed = await self.holders()
        for holder in listed.holders:
            if (
                holder.name.endswith(f":{pid}")
                and holder.lease_expire_time.ToNanoseconds() > listed.now.ToNanoseconds()
            ):
                return holder if holder.acknowledged_revision == listed.revision else None
        return None

    async def revision(self) -> int:
        """Return the current revision."""
        return (await self.holders()).revision

    async def _call(self, method: Any, request: Any) -> Any:
        return await method(request, metadata=self._metadata, timeout=_CALL_SECONDS_MAX)


def _unix_seconds(propagation: pb.Propagation) -> float:
    return propagation.effective_by.ToNanoseconds() / 1e9
