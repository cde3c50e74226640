"""The admin's calls, for the dashboard and the service's own command line. They return the service's messages.

They raise RefusedError, CallError, and KeyServiceUnavailableError where nothing was sent.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import grpc

from authsvc.client.channel import (
    ClientTls,
    Metadata,
    TokenSource,
    call_with_token,
    connection_fault,
    naming,
    open_channel,
)
from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import Address
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub
from authsvc.v1.operations_service_pb2_grpc import OperationsServiceStub
from authsvc.v1.project_service_pb2_grpc import ProjectServiceStub

# Callers of this library import nothing of `v1`.
Change: TypeAlias = operations_pb2.Change
Issued: TypeAlias = pb.IssueResponse
Key: TypeAlias = pb.Key
OriginCheck: TypeAlias = project_pb2.OriginCheck
OriginsCheck: TypeAlias = project_pb2.CheckOriginsResponse
Project: TypeAlias = pb.Project
Propagation: TypeAlias = pb.Propagation
Revoked: TypeAlias = pb.RevokeResponse

_Wait: TypeAlias = timedelta | None
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

PAGE_SIZE = 50

_REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS")
_TOKEN_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")


class RefusedError(Exception):
    """The service understood the call, and did nothing; the text is the service's, for people."""

    def __init__(self, message: str, status: str) -> None:
        """`status` is INVALID_ARGUMENT, NOT_FOUND or ALREADY_EXISTS."""
        super().__init__(message)
        self.status = status


class CallError(KeyServiceUnavailableError):
    """A call was sent, and failed in another way."""

    def __init__(self, message: str, status: str, details: str) -> None:
        """`status` is gRPC's name of it, and `details` are what came with it."""
        super().__init__(message)
        self.status = status
        self.details = details

    @property
    def is_token_refused(self) -> bool:
        """Whether the service does not know the token, or its role may not do this."""
        return self.status in _TOKEN_REFUSALS

    @property
    def is_refused(self) -> bool:
        """Whether nothing was done. Other failures may follow a commit: of the service, or of a proxy before it."""
        return self.is_token_refused or self.status in ("FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")

    @property
    def is_unavailable(self) -> bool:
        """Whether the same call may succeed later."""
        # CANCELLED: gRPC's status for what a service that is being stopped has read and not begun.
        return self.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


class AdminClient:
    """One key service. Made anywhere, used in one event loop; `close` ends it.

    `caller` is for the audit trail. Mutations wait for all holders to confirm them: 2 s where `wait` is None.
    """

    def __init__(
        self, address: Address, token: TokenSource, tls: ClientTls | None = None, deadline_seconds: float = 10.0
    ) -> None:
        """Connect at the first call. `deadline_seconds` bounds a call, the wait for a change to hold included."""
        self._address = address
        self._token = token
        self._tls = tls
        self._deadline_seconds = deadline_seconds
        self._channel: grpc.aio.Channel | None = None
        self._retired: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the connection, and the calls under way."""
        self._retire()
        await asyncio.gather(*self._retired)

    async def issue(
        self,
        project_id: str,
        origins: Sequence[str],
        *,
        allow_public_suffix: bool = False,
        wait: _Wait = None,
        caller: str,
    ) -> pb.IssueResponse:
        """Issue a project's key, and make the project if it is new. ALREADY_EXISTS when it has an active key."""
        request = pb.IssueRequest(
            project_id=project_id, origins=origins, allow_public_suffix=allow_public_suffix, wait=_duration(wait)
        )
        return await self._call(lambda channel: KeyServiceStub(channel).Issue, request, caller)

    async def revoke(self, project_id: str, key_id: str, *, wait: _Wait = None, caller: str) -> pb.RevokeResponse:
        """End the key with this id, and issue the next. NOT_FOUND for another project's key."""
        request = pb.RevokeRequest(project_id=project_id, key_id=key_id, wait=_duration(wait))
        return await self._call(lambda channel: KeyServiceStub(channel).Revoke, request, caller)

    async def set_origins(
        self,
        project_id: str,
        origins: Sequence[str],
        *,
        allow_public_suffix: bool = False,
        wait: _Wait = None,
        caller: str,
    ) -> pb.SetOriginsResponse:
        """Replace a project's origins. INVALID_ARGUMENT names the bad entry."""
        request = pb.SetOriginsRequest(
            project_id=project_id, origins=origins, allow_public_suffix=allow_public_suffix, wait=_duration(wait)
        )
        return await self._call(lambda channel: KeyServiceStub(channel).SetOrigins, request, caller)

    async def validate(self, api_key: str, origin: str | None) -> pb.ValidateResponse:
        """Say whether a key may be used, and from an origin. The bridge's token may ask this, too."""
        request = pb.ValidateRequest(api_key=api_key, origin=origin)
        return await self._call(lambda channel: KeyServiceStub(channel).Validate, request)

    async def check_origins(
        self, entries: Sequence[str], origins: Sequence[str] = (), *, allow_public_suffix: bool = False
    ) -> OriginsCheck:
        """Say what a list of at most 100 entries would be stored as, and which of at most 1000 origins it admits."""
        request = project_pb2.CheckOriginsRequest(
            entries=entries, origins=origins, allow_public_suffix=allow_public_suffix
        )
        return await self._call(lambda channel: ProjectServiceStub(channel).CheckOrigins, request)

    async def project(self, project_id: str) -> Project:
        """Return a project. NOT_FOUND, and INVALID_ARGUMENT for what is no project id."""
        request = project_pb2.GetProjectRequest(project_id=project_id)
        return (await self._call(lambda channel: ProjectServiceStub(channel).GetProject, request)).project

    async def projects(self, *, query: str = "", page_token: str = "") -> tuple[Sequence[Project], str]:
        """Return PAGE_SIZE projects by id, those that contain the query, and the token of the next page or nothing."""
        request = project_pb2.ListProjectsRequest(query=query, page_token=page_token, page_size=PAGE_SIZE)
        page = await self._call(lambda channel: ProjectServiceStub(channel).ListProjects, request)
        return page.projects, page.next_page_token

    async def keys(self, project_id: str, *, page_token: str = "") -> tuple[Sequence[Key], str]:
        """Return PAGE_SIZE of a project's keys, newest first, and the token of the next page or nothing."""
        request = project_pb2.ListKeysRequest(project_id=project_id, page_token=page_token, page_size=PAGE_SIZE)
        page = await self._call(lambda channel: ProjectServiceStub(channel).ListKeys, request)
        return page.keys, page.next_page_token

    async def holders(self) -> operations_pb2.ListHoldersResponse:
        """Return who may use cached verdicts."""
        request = operations_pb2.ListHoldersRequest()
        return await self._call(lambda channel: OperationsServiceStub(channel).ListHolders, request)

    async def changes(self, *, project_id: str = "", before_revision: int = 0) -> tuple[Sequence[Change], int]:
        """Return PAGE_SIZE changes of one project or all, newest first, and `before_revision` of the next page or 0."""
        # One more than are returned: whether there is a next page.
        request = operations_pb2.ListChangesRequest(
            project_id=project_id, before_revision=before_revision, newest_first=True, page_size=PAGE_SIZE + 1
        )
        page = await self._call(lambda channel: OperationsServiceStub(channel).ListChanges, request)
        changes = page.changes[:PAGE_SIZE]
        return changes, changes[-1].revision if len(page.changes) > PAGE_SIZE else 0

    async def changes_after(self, revision: int, *, project_id: str = "") -> Sequence[Change]:
        """Return a page of changes of one project or all that follow a revision, oldest first."""
        request = operations_pb2.ListChangesRequest(project_id=project_id, after_revision=revision)
        return (await self._call(lambda channel: OperationsServiceStub(channel).ListChanges, request)).changes

    async def _call(
        self,
        method: "Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        caller: str = "",
    ) -> _Response:
        async def call(metadata: Metadata) -> _Response:
            options: dict[str, Any] = {"timeout": self._deadline_seconds, "metadata": (*metadata, *naming(caller))}
            if self._channel is None:
                self._channel = open_channel(self._address, self._tls)
            return await method(self._channel)(request, **options)

        try:
            return await call_with_token(self._token, call)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error.code(), error.details() or "") from None

    def _failure(self, code: grpc.StatusCode, details: str) -> Exception:
        if code.name in _REFUSALS:
            return RefusedError(details, code.name)
        who = f"the key service at {self._address}"
        reason = f"{who} answered {code.name}: {details}"
        if code.name in _TOKEN_REFUSALS:
            reason = f"{who} does not accept our admin token"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._retire()
            reason = f"{who} did not answer within {self._deadline_seconds:g} s"
        elif code is grpc.StatusCode.UNAVAILABLE:
            self._retire()
            if (fault := connection_fault(details, self._address, self._tls)) is not None:
                return KeyServiceUnavailableError(fault)
            reason = f"{who} can be reached, but says: {details}"
        return CallError(reason, code.name, details)

    def _retire(self) -> None:
        """Connect anew at the next call: without the old channel's back-off, and with certificates read again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            task = asyncio.create_task(channel.close(grace=self._deadline_seconds))  # for other calls on their way
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)


def _duration(value: _Wait) -> Any:
    """Return what a message takes; the generated types do not know that it takes this."""
    return value
