"""The admin's side of the key service: issue, revoke, origins, projects, the audit trail.

For programs that hold the admin token and act for people, such as a dashboard; each
mutation names who asked for it. A call ends in a typed answer, in RefusedError (the
service understood, and says no), or in KeyServiceUnavailableError.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import ClientTls, TokenSource, authorization, naming, open_channel
from authsvc.client.diagnosis import diagnose
from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import Address
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub
from authsvc.v1.operations_service_pb2_grpc import OperationsServiceStub
from authsvc.v1.project_service_pb2_grpc import ProjectServiceStub

_T = TypeVar("_T")

PAGE_SIZE = 50
_DIAGNOSIS_SECONDS = 1.0


class Refusal(StrEnum):
    """Why the service refused."""

    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    INVALID = "invalid"


_REFUSALS = {
    grpc.StatusCode.NOT_FOUND: Refusal.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Refusal.ALREADY_EXISTS,
    grpc.StatusCode.INVALID_ARGUMENT: Refusal.INVALID,
}


class RefusedError(Exception):
    """The service understood the call and refused it; the text is the service's, for people."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key; instants are aware and in UTC."""

    key_id: str
    prefix: str
    create_time: datetime
    revoke_time: datetime | None
    creator: str
    """Who issued it."""


@dataclass(frozen=True, slots=True)
class Project:
    """A project with the key in use."""

    project_id: str
    origins: tuple[str, ...]
    create_time: datetime
    active_key: Key


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that may reuse verdicts."""

    name: str
    renew_time: datetime


@dataclass(frozen=True, slots=True)
class Propagation:
    """By when a change holds everywhere, and whom that depends on."""

    effective_by: datetime
    is_effective: bool
    confirmed: tuple[Holder, ...]
    """At most 100, as `pending`; the counts are of all."""
    pending: tuple[Holder, ...]
    confirmed_count: int
    pending_count: int


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key; nothing shows the raw one again."""

    api_key: ApiKey
    key: Key
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class Revoked:
    """The end of one key, and the next one, which is None when the key had been revoked before this call."""

    revoked_key: Key
    next_key: Issued | None
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class OriginsSet:
    """An origin list as it is stored."""

    origins: tuple[str, ...]
    already_set: bool
    """The list had been stored before this call, which changed nothing."""
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class EntryCheck:
    """An entry as it would be stored, or why it is refused; the other text is empty."""

    entry: str
    error: str
    public_suffix: str
    """The public suffix under which it admits everybody's pages; empty for none."""


@dataclass(frozen=True, slots=True)
class OriginCheck:
    """Whether an origin is admitted, and by which entry: none when it is not, or every origin is."""

    is_admitted: bool
    entry: str


@dataclass(frozen=True, slots=True)
class OriginsCheck:
    """What a list would do: one answer for each entry, and for each origin, in the order given."""

    entries: tuple[EntryCheck, ...]
    origins: tuple[OriginCheck, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the audit trail."""

    revision: int
    kind: str
    project_id: str
    caller: str
    create_time: datetime
    key_id: str
    """The key that was issued; empty for `set_origins`."""
    revoked_key_id: str
    """The key that was revoked; empty unless `revoke`."""


class AdminClient:
    """The key service at one address, called as admin. Made and used in one event loop; `close` ends it.

    Every method raises RefusedError and KeyServiceUnavailableError.
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

    async def issue(self, project_id: str, origins: Sequence[str], *, caller: str) -> Issued:
        """Issue a project's key, and make the project if it is new. ALREADY_EXISTS when it has an active key."""
        request = pb.IssueRequest(project_id=project_id, origins=origins)
        answer = await self._call(lambda stubs, **options: stubs.keys.Issue(request, **options), caller)
        return Issued(ApiKey(answer.api_key), _key(answer.key), _propagation(answer.propagation))

    async def revoke(self, project_id: str, key_id: str, *, caller: str) -> Revoked:
        """End the key with this id, and issue the next. NOT_FOUND for another project's key."""
        request = pb.RevokeRequest(project_id=project_id, key_id=key_id)
        answer = await self._call(lambda stubs, **options: stubs.keys.Revoke(request, **options), caller)
        propagation = _propagation(answer.propagation)
        next_key = None
        if not answer.already_revoked:
            next_key = Issued(ApiKey(answer.api_key), _key(answer.key), propagation)
        return Revoked(_key(answer.revoked_key), next_key, propagation)

    async def set_origins(
        self, project_id: str, origins: Sequence[str], *, allow_public_suffix: bool = False, caller: str
    ) -> OriginsSet:
        """Replace a project's origins. INVALID names the bad entry."""
        request = pb.SetOriginsRequest(project_id=project_id, origins=origins, allow_public_suffix=allow_public_suffix)
        answer = await self._call(lambda stubs, **options: stubs.keys.SetOrigins(request, **options), caller)
        return OriginsSet(tuple(answer.origins), answer.already_set, _propagation(answer.propagation))

    async def check_origins(
        self, entries: Sequence[str], origins: Sequence[str] = (), *, allow_public_suffix: bool = False
    ) -> OriginsCheck:
        """Say what a list of at most 100 entries would be stored as, and which of at most 1000 origins it admits."""
        request = project_pb2.CheckOriginsRequest(
            entries=entries, origins=origins, allow_public_suffix=allow_public_suffix
        )
        answer = await self._call(lambda stubs, **options: stubs.projects.CheckOrigins(request, **options))
        return OriginsCheck(
            tuple(EntryCheck(check.entry, check.error, check.public_suffix) for check in answer.entries),
            tuple(OriginCheck(check.admitted, check.entry) for check in answer.origins),
        )

    async def project(self, project_id: str) -> Project:
        """Return a project. NOT_FOUND, and INVALID for what is no project id."""
        request = project_pb2.GetProjectRequest(project_id=project_id)
        answer = await self._call(lambda stubs, **options: stubs.projects.GetProject(request, **options))
        return _project(answer.project)

    async def projects(self, *, query: str = "", page_token: str = "") -> tuple[list[Project], str]:
        """Return PAGE_SIZE projects by id, those that contain the query, and the token of the next page or nothing."""
        request = project_pb2.ListProjectsRequest(query=query, page_token=page_token, page_size=PAGE_SIZE)
        answer = await self._call(lambda stubs, **options: stubs.projects.ListProjects(request, **options))
        return [_project(project) for project in answer.projects], answer.next_page_token

    async def keys(self, project_id: str, *, page_token: str = "") -> tuple[list[Key], str]:
        """Return PAGE_SIZE of a project's keys, newest first, and the token of the next page or nothing."""
        request = project_pb2.ListKeysRequest(project_id=project_id, page_token=page_token, page_size=PAGE_SIZE)
        answer = await self._call(lambda stubs, **options: stubs.projects.ListKeys(request, **options))
        return [_key(key) for key in answer.keys], answer.next_page_token

    async def changes(self, *, project_id: str = "", before_revision: int = 0) -> tuple[list[Change], int]:
        """Return PAGE_SIZE changes of one project or all, newest first, and `before_revision` of the next page or 0."""
        # One more than are returned: whether there is a next page.
        request = operations_pb2.ListChangesRequest(
            project_id=project_id, before_revision=before_revision, newest_first=True, page_size=PAGE_SIZE + 1
        )
        answer = await self._call(lambda stubs, **options: stubs.operations.ListChanges(request, **options))
        changes = [
            Change(
                change.revision,
                change.kind,
                change.project_id,
                change.caller,
                _instant(change.create_time),
                change.key_id,
                change.revoked_key_id,
            )
            for change in answer.changes[:PAGE_SIZE]
        ]
        return changes, changes[-1].revision if len(answer.changes) > PAGE_SIZE else 0

    async def _call(self, call: Callable[..., Awaitable[_T]], caller: str = "") -> _T:
        token = self._token.read()
        for is_last in (False, True):
            metadata = (*authorization(token), *naming(caller))
            try:
                return await call(self._stubs(), timeout=self._deadline_seconds, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                self._token.forget()
                if error.code() is grpc.StatusCode.UNAUTHENTICATED and not is_last:
                    renewed = self._token.read()  # the service may have a new token since
                    if renewed.reveal() != token.reveal():
                        token = renewed
                        continue
                raise await self._failure(error.code(), error.details() or "") from None
        raise AssertionError  # the second try returned or raised

    def _stubs(self) -> "_Stubs":
        if self._channel is None:
            self._channel = open_channel(self._address, self._tls)
        return _Stubs(self._channel)

    async def _failure(self, code: grpc.StatusCode, details: str) -> Exception:
        who = f"the key service at {self._address}"
        match code:
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return KeyServiceUnavailableError(f"{who} does not accept our admin token")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                self._retire()
                return KeyServiceUnavailableError(f"{who} did not answer within {self._deadline_seconds:g} s")
            case grpc.StatusCode.UNAVAILABLE:
                self._retire()
                reason = await diagnose(self._address, self._tls, _DIAGNOSIS_SECONDS)
                return KeyServiceUnavailableError(reason or f"{who} can be reached, but says: {details}")
        if code in _REFUSALS:
            return RefusedError(details, _REFUSALS[code])
        return KeyServiceUnavailableError(f"{who} answered {code.name}: {details}")

    def _retire(self) -> None:
        """Connect anew at the next call: without the old channel's back-off, and with certificates read again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            task = asyncio.create_task(channel.close(grace=self._deadline_seconds))  # for other calls on their way
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)


class _Stubs:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.keys: Any = KeyServiceStub(channel)
        self.projects: Any = ProjectServiceStub(channel)
        self.operations: Any = OperationsServiceStub(channel)


def _project(message: pb.Project) -> Project:
    return Project(message.project_id, tuple(message.origins), _instant(message.create_time), _key(message.active_key))


def _key(message: pb.Key) -> Key:
    revoked = _instant(message.revoke_time) if message.HasField("revoke_time") else None
    return Key(message.key_id, message.prefix, _instant(message.create_time), revoked, message.creator)


def _propagation(message: pb.Propagation) -> Propagation:
    return Propagation(
        _instant(message.effective_by),
        message.effective,
        tuple(Holder(holder.name, _instant(holder.renew_time)) for holder in message.confirmed),
        tuple(Holder(holder.name, _instant(holder.renew_time)) for holder in message.pending),
        message.confirmed_count,
        message.pending_count,
    )


def _instant(message: Timestamp) -> datetime:
    return message.ToDatetime(UTC)
