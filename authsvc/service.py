"""KeyService, ProjectService and OperationsService: protobuf to domain and back, nothing else.

Registered by `app`, called by gRPC behind `interceptors`, which turns what is
raised here into a status.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Coroutine, Sequence
from datetime import timedelta
from heapq import nlargest, nsmallest
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.changes import ChangeFeed
from authsvc.client.holder import ChangeEvent, Event, LeaseEvent, Renewal, ResetEvent
from authsvc.client.raw_key import PREFIX, RawKey
from authsvc.errors import InvalidArgumentError, StoreUnavailableError
from authsvc.keys import ProjectId, generate_key_id, generate_raw_key, parse_project_id
from authsvc.lease_store import LeaseStore
from authsvc.leases import LeaseRow
from authsvc.origins import ENTRIES_MAX, OriginEntryError, OriginList, normalise_entry, normalise_list
from authsvc.store import Change, Key, KeyStore, NewKey, Project, Revision, Revoked
from authsvc.watch import Watch
from protos.authsvc.v1 import key_service_pb2 as pb
from protos.authsvc.v1 import key_service_pb2_grpc as pb_grpc

_log = structlog.get_logger("authsvc")
_T = TypeVar("_T")
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic for the type checker only

_CACHE_TTL = timedelta(seconds=60)
# A key may be issued right after it was probed; callers that hold no lease should notice soon.
_INVALID_CACHE_TTL = timedelta(seconds=5)
_PAGE_SIZE_DEFAULT = 50
_PAGE_SIZE_MAX = 100  # projects with 100 origins of 260 characters each are 2.6 MB, and gRPC's clients take 4 MiB
_BATCH_MAX = 256
_CALLER_CHARACTERS_MAX = 128
_NAMED_MAX = 100  # holders in the answer to a mutation; the rest are counted
_HOLDERS_MAX = 5000  # of at most 650 bytes, likewise
_CHECKED_ORIGINS_MAX = 1000
_WAIT_SECONDS_DEFAULT = 2.0
_WAIT_SECONDS_MAX = 25.0


class KeyService(pb_grpc.KeyServiceServicer):
    """Issues, revokes and validates keys."""

    def __init__(self, store: KeyStore, watch: Watch, feed: ChangeFeed) -> None:
        """Serve from the store, which stays the caller's to close after `drain`."""
        self._store = store
        self._watch = watch
        self._feed = feed
        self._mutations: set[asyncio.Task[Any]] = set()

    async def drain(self) -> None:
        """Wait for the mutations whose callers have gone away."""
        while self._mutations:
            await asyncio.wait(self._mutations)

    async def Validate(self, request: pb.ValidateRequest, context: _Context) -> pb.ValidateResponse:
        """Answer with a verdict."""
        return await self._validate(request)

    async def BatchValidate(self, request: pb.BatchValidateRequest, context: _Context) -> pb.BatchValidateResponse:
        """Answer each request with a verdict."""
        if len(request.requests) > _BATCH_MAX:
            raise InvalidArgumentError(f"{len(request.requests)} requests: {_BATCH_MAX} are the most")
        return pb.BatchValidateResponse(
            responses=await asyncio.gather(*(self._validate_apart(entry) for entry in request.requests))
        )

    async def _validate_apart(self, request: pb.ValidateRequest) -> pb.ValidateResponse:
        try:
            return await self._validate(request)
        except StoreUnavailableError:
            return pb.ValidateResponse()

    async def _validate(self, request: pb.ValidateRequest) -> pb.ValidateResponse:
        raw_key = RawKey.parse(request.api_key)
        if raw_key is None:
            return _invalid_key(Revision(0))
        revision, active = await self._store.lookup(raw_key.digest)
        if active is None:
            return _invalid_key(revision)
        origin = request.origin if request.HasField("origin") else None
        admitted = OriginList(active.origins).admits(origin)
        return pb.ValidateResponse(
            verdict=pb.VERDICT_ALLOWED if admitted else pb.VERDICT_ORIGIN_NOT_ALLOWED,
            project_id=active.project_id,
            key_id=active.key_id,
            any_origin=not active.origins,
            cache_ttl=_duration(_CACHE_TTL),
            revision=revision,
        )

    async def Issue(self, request: pb.IssueRequest, context: _Context) -> pb.IssueResponse:
        """Create the project's key, and the project if it is new."""
        project_id = parse_project_id(request.project_id)
        origins = _normalised(request.origins)
        raw_key, new_key = _new_key()
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        key, origins, revision = await self._finish(self._issue(project_id, origins, new_key, _caller(context)))
        return pb.IssueResponse(
            api_key=raw_key.reveal(),
            key=_key(key),
            origins=origins,
            revision=revision,
            propagation=await self._propagate(revision, wait_seconds, answer_by),
        )

    async def Revoke(self, request: pb.RevokeRequest, context: _Context) -> pb.RevokeResponse:
        """End a key and issue the next."""
        project_id = parse_project_id(request.project_id)
        key_id = request.key_id if request.HasField("key_id") else None
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        raw_key, new_key = _new_key()
        outcome = await self._finish(self._revoke(project_id, key_id, new_key, _caller(context)))
        response = pb.RevokeResponse(revoked_key=_key(outcome.key), revision=outcome.revision)
        if outcome.next_key is None:
            response.already_revoked = True  # rule 11: nothing was committed, and the wait is as for the first call
        else:
            response.api_key = raw_key.reveal()
            response.key.CopyFrom(_key(outcome.next_key))
        response.propagation.CopyFrom(await self._propagate(outcome.revision, wait_seconds, answer_by))
        return response

    async def SetOrigins(self, request: pb.SetOriginsRequest, context: _Context) -> pb.SetOriginsResponse:
        """Replace the project's origin list."""
        project_id = parse_project_id(request.project_id)
        origins = _normalised(request.origins)
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        revision = await self._finish(self._set_origins(project_id, origins, _caller(context)))
        propagation = await self._propagate(revision, wait_seconds, answer_by)
        return pb.SetOriginsResponse(origins=origins, revision=revision, propagation=propagation)

    # grpc.aio also takes a coroutine that writes to its context; the stub knows generators only.
    async def Watch(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.WatchRequest], context: Any
    ) -> None:
        """Serve one holder's stream."""

        async def renewals() -> AsyncIterator[Renewal]:
            async for request in request_iterator:
                yield _renewal(request)

        async def send(event: Event) -> None:
            await context.write(_event(event))

        # gRPC sends it with the first event otherwise, and while that is under way cannot say how the stream ends.
        await context.send_initial_metadata(())
        await self._watch.serve(renewals(), send)

    async def _propagate(self, revision: int, wait_seconds: float, answer_by: float) -> pb.Propagation:
        propagation = await self._watch.propagate(revision, wait_seconds, answer_by)
        if propagation is None:
            return pb.Propagation(effective_by=_timestamp(self._watch.lease_bound()))
        return pb.Propagation(
            effective_by=_timestamp(propagation.effective_by),
            effective=propagation.is_effective,
            confirmed=map(_holder, islice(propagation.confirmed.values(), _NAMED_MAX)),
            pending=map(_holder, nlargest(_NAMED_MAX, propagation.pending.values(), key=lambda row: row.expire_time)),
            confirmed_count=len(propagation.confirmed),
            pending_count=len(propagation.pending),
        )

    # What is committed is logged, also when the caller is gone.

    async def _issue(
        self, project_id: ProjectId, origins: Sequence[str], new_key: NewKey, caller: str
    ) -> tuple[Key, tuple[str, ...], Revision]:
        key, origins, revision = await self._store.issue(project_id, origins, new_key, caller)
        _log.info("key_issued", project_id=project_id, key_id=key.key_id, caller=caller, revision=revision)
        return key, origins, revision

    async def _revoke(self, project_id: ProjectId, key_id: str | None, new_key: NewKey, caller: str) -> Revoked:
        outcome = await self._store.revoke(project_id, key_id, new_key, caller)
        if outcome.next_key is not None:
            ids = {"key_id": outcome.key.key_id, "next_key_id": outcome.next_key.key_id}
            _log.info("key_revoked", project_id=project_id, **ids, caller=caller, revision=outcome.revision)
        return outcome

    async def _set_origins(self, project_id: ProjectId, origins: Sequence[str], caller: str) -> Revision:
        revision = await self._store.set_origins(project_id, origins, caller)
        _log.info("origins_set", project_id=project_id, caller=caller, revision=revision)
        return revision

    async def _finish(self, mutation: Coroutine[Any, Any, _T]) -> _T:
        """Run a mutation to its end even if its caller goes away: it is either not begun or committed, never cut."""
        task = asyncio.create_task(mutation)
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        task.add_done_callback(lambda _: self._feed.wake())
        return await asyncio.shield(task)


class ProjectService(pb_grpc.ProjectServiceServicer):
    """Reads projects and keys."""

    def __init__(self, store: KeyStore) -> None:
        """Read from the store, which stays the caller's to close."""
        self._store = store

    async def GetProject(self, request: pb.GetProjectRequest, context: _Context) -> pb.GetProjectResponse:
        """Return one project."""
        project = await self._store.project(parse_project_id(request.project_id))
        return pb.GetProjectResponse(project=_project(project))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: _Context) -> pb.ListProjectsResponse:
        """Return a page of projects."""
        size = _page_size(request.page_size)
        after = parse_project_id(_page_position(request.page_token)) if request.page_token else ""
        if "\0" in request.query:  # which PostgreSQL cannot compare
            raise InvalidArgumentError("query: must not contain U+0000")
        projects = await self._store.projects(after=after, limit=size + 1, containing=request.query)
        token = _page_token(projects[size - 1].project_id) if len(projects) > size else ""
        return pb.ListProjectsResponse(projects=map(_project, projects[:size]), next_page_token=token)

    async def ListKeys(self, request: pb.ListKeysRequest, context: _Context) -> pb.ListKeysResponse:
        """Return a page of a project's keys."""
        project_id = parse_project_id(request.project_id)
        size = _page_size(request.page_size)
        before = None
        if request.page_token:
            position = _page_position(request.page_token)
            if not position.isdecimal() or len(position) > 18:
                raise InvalidArgumentError("page_token: not one that a response carried")
            before = Revision(int(position))
        keys = await self._store.keys(project_id, before=before, limit=size + 1)
        token = _page_token(str(keys[size - 1].create_revision)) if len(keys) > size else ""
        return pb.ListKeysResponse(keys=map(_key, keys[:size]), next_page_token=token)

    async def CheckOrigins(self, request: pb.CheckOriginsRequest, context: _Context) -> pb.CheckOriginsResponse:
        """Say what a list would be stored as, and which origins it would admit."""
        if len(request.entries) > ENTRIES_MAX or len(request.origins) > _CHECKED_ORIGINS_MAX:
            raise InvalidArgumentError(
                f"{len(request.entries)} origin entries and {len(request.origins)} origins: "
                f"{ENTRIES_MAX} and {_CHECKED_ORIGINS_MAX} are the most"
            )
        checks = [_entry_check(entry) for entry in request.entries]
        entries = [check.entry for check in checks if check.entry]
        listed = OriginList(entries)
        answer = pb.CheckOriginsResponse(entries=checks)
        for origin in request.origins:
            admitting = listed.admitting_entries(origin)
            first = next((entry for entry in entries if entry in admitting), "")
            answer.origins.add(admitted=bool(first) or not checks, entry=first)
        return answer


class OperationsService(pb_grpc.OperationsServiceServicer):
    """Shows operators who holds leases, and the audit trail."""

    def __init__(self, store: KeyStore, leases: LeaseStore) -> None:
        """Read from both, which stay the caller's to close."""
        self._store = store
        self._leases = leases

    async def ListHolders(self, request: pb.ListHoldersRequest, context: _Context) -> pb.ListHoldersResponse:
        """Return who may reuse verdicts."""
        rows, state = await self._leases.rows()
        holders = map(_holder, nsmallest(_HOLDERS_MAX, rows, key=lambda row: (row.name, row.holder_id)))
        return pb.ListHoldersResponse(
            holders=holders, revision=state.revision, now=_timestamp(state.time), epoch=state.epoch
        )

    async def ListChanges(self, request: pb.ListChangesRequest, context: _Context) -> pb.ListChangesResponse:
        """Return a page of the audit trail."""
        if request.after_revision < 0 or request.before_revision < 0:
            raise InvalidArgumentError("after_revision, before_revision: must not be negative")
        changes = await self._store.changes(
            after=Revision(request.after_revision),
            limit=_page_size(request.page_size),
            project_id=parse_project_id(request.project_id) if request.project_id else None,
            before=Revision(request.before_revision) if request.before_revision else None,
            is_newest_first=request.newest_first,
        )
        return pb.ListChangesResponse(changes=map(_change, changes))


def _wait_seconds(request: Any) -> float:
    """Return how long the caller would wait for the change to hold everywhere."""
    if not request.HasField("wait"):
        return _WAIT_SECONDS_DEFAULT
    wait_seconds: float = request.wait.seconds + request.wait.nanos / 1e9
    if wait_seconds < 0:
        raise InvalidArgumentError("wait: must not be negative")
    return min(wait_seconds, _WAIT_SECONDS_MAX)


def _renewal(request: pb.WatchRequest) -> Renewal:
    if not 16 <= len(request.holder_id) <= 64 or not request.holder_id.isascii():
        raise InvalidArgumentError("holder_id: expected 16 to 64 ASCII characters")
    if len(request.name) > 128 or "\0" in request.name + request.holder_id + request.epoch or len(request.epoch) > 32:
        raise InvalidArgumentError("name, holder_id or epoch: too long, or not text")
    if request.applied_revision < 0:
        raise InvalidArgumentError("applied_revision: must not be negative")
    return Renewal(
        request.epoch, request.holder_id, request.name, request.sequence, request.applied_revision, request.goodbye
    )


def _event(event: Event) -> pb.WatchResponse:
    match event:
        case ChangeEvent():
            return pb.WatchResponse(change=pb.ChangeEvent(revision=event.revision, key_digests=event.digests))
        case LeaseEvent():
            duration = _duration(timedelta(seconds=event.duration_seconds))
            lease = pb.LeaseEvent(sequence=event.sequence, duration=duration, revision=event.revision)
            return pb.WatchResponse(lease=lease)
        case ResetEvent():
            return pb.WatchResponse(reset=pb.ResetEvent(epoch=event.epoch, revision=event.revision))


def _holder(row: LeaseRow) -> pb.Holder:
    return pb.Holder(
        holder_id=row.holder_id,
        name=row.name,
        acknowledged_revision=row.acknowledged_revision,
        lease_expire_time=_timestamp(row.expire_time),
        renew_time=_timestamp(row.renew_time),
        epoch=row.epoch,
    )


def _change(change: Change) -> pb.Change:
    return pb.Change(
        revision=change.revision,
        kind=change.kind,
        project_id=change.project_id,
        caller=change.caller,
        create_time=_timestamp(change.create_time),
    )


def _caller(context: _Context) -> str:
    """Who is to stand in the audit trail: what the caller, whom the interceptor knows to be admin, calls itself."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-authsvc-caller" and isinstance(value, str) and value.isprintable():
            return value[:_CALLER_CHARACTERS_MAX] or "admin"
        if key == "x-authsvc-caller-bin" and isinstance(value, bytes):  # for names beyond ASCII: UTF-8
            name = value.decode(errors="replace")[:_CALLER_CHARACTERS_MAX]
            return name if name and name.isprintable() else "admin"
    return "admin"


def _normalised(entries: Sequence[str]) -> tuple[str, ...]:
    try:
        return normalise_list(entries)
    except OriginEntryError as error:
        raise InvalidArgumentError(str(error)) from None


def _entry_check(entry: str) -> pb.EntryCheck:
    try:
        return pb.EntryCheck(entry=normalise_entry(entry))
    except OriginEntryError as error:
        return pb.EntryCheck(error=error.reason)


def _new_key() -> tuple[RawKey, NewKey]:
    raw_key = generate_raw_key()
    return raw_key, NewKey(generate_key_id(), raw_key.digest)


def _invalid_key(revision: Revision) -> pb.ValidateResponse:
    return pb.ValidateResponse(
        verdict=pb.VERDICT_INVALID_KEY,
        any_origin=True,
        cache_ttl=_duration(_INVALID_CACHE_TTL),
        revision=revision,
    )


def _page_size(requested: int) -> int:
    if requested < 0:
        raise InvalidArgumentError("page_size: must not be negative")
    return min(requested or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)


def _page_token(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _page_position(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgumentError("page_token: not one that a response carried") from None


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message


def _key(key: Key) -> pb.Key:
    message = pb.Key(key_id=key.key_id, project_id=key.project_id, prefix=PREFIX, creator=key.creator)
    message.create_time.CopyFrom(_timestamp(key.create_time))
    if key.revoke_time is not None:
        message.revoke_time.CopyFrom(_timestamp(key.revoke_time))
    return message


def _timestamp(value: Any) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _project(project: Project) -> pb.Project:
    message = pb.Project(project_id=project.project_id, origins=project.origins)
    message.create_time.CopyFrom(_timestamp(project.create_time))
    if project.active_key is not None:
        message.active_key.CopyFrom(_key(project.active_key))
    return message
