"""KeyService: protobuf to domain and back, nothing else. `call_guard` turns what is raised here into a status."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from authsvc.api import messages
from authsvc.api.callers import Callers
from authsvc.api.messages import Context
from authsvc.client.api_key import ApiKey, Digest, digest_of
from authsvc.client.lease_messages import Event, KeepAlive
from authsvc.errors import InvalidArgumentError, StoreUnavailableError
from authsvc.keys import KeyId, ProjectId, generate_api_key, generate_key_id, parse_key_id, parse_project_id
from authsvc.origins import OriginEntryError, normalise_list
from authsvc.revocation.key_cache import KeyCache
from authsvc.revocation.watch import Watch
from authsvc.storage.key_store import KeyStore
from authsvc.storage.records import Key, NewKey, Revision, Revoked, Snapshot
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc

_log = structlog.get_logger("authsvc")
_T = TypeVar("_T")

_BATCH_MAX = 256
_CALLER_CHARACTERS_MAX = 128
_NAMED_MAX = 100  # holders in the answer to a mutation; the rest are counted
_WAIT_SECONDS_DEFAULT = 2.0
_WAIT_SECONDS_MAX = 25.0


class KeyService(pb_grpc.KeyServiceServicer):
    """Issues, revokes and validates keys."""

    def __init__(self, store: KeyStore, cache: KeyCache, watch: Watch, callers: Callers) -> None:
        self._callers = callers
        self._store = store
        self._cache = cache
        self._watch = watch
        self._feed = watch.feed
        self._mutations: set[asyncio.Task[Any]] = set()

    async def drain(self) -> None:
        """Wait for the mutations whose callers have gone away."""
        while self._mutations:
            await asyncio.wait(self._mutations)

    async def Validate(self, request: pb.ValidateRequest, context: Context) -> pb.ValidateResponse:
        """Return a verdict."""
        found = self._from_memory(request)
        return (
            found
            if isinstance(found, pb.ValidateResponse)
            else _verdict(request, found, await self._cache.read([found]))
        )

    async def BatchValidate(self, request: pb.BatchValidateRequest, context: Context) -> pb.BatchValidateResponse:
        """Answer each request with a verdict: from memory, and all others with one look at the database."""
        return pb.BatchValidateResponse(responses=await self._responses(request.requests))

    async def StreamValidate(
        self, request_iterator: AsyncIterator[pb.StreamValidateRequest], context: Context
    ) -> AsyncIterator[pb.StreamValidateResponse]:
        """Answer one batch after the other."""
        async for request in request_iterator:
            yield pb.StreamValidateResponse(responses=await self._responses(request.requests))

    async def _responses(self, requests: Sequence[pb.ValidateRequest]) -> list[pb.ValidateResponse]:
        if len(requests) > _BATCH_MAX:
            raise InvalidArgumentError(f"{len(requests)} requests: {_BATCH_MAX} are the most")
        found = [self._from_memory(request) for request in requests]
        snapshot = None
        with suppress(StoreUnavailableError):  # those that were found are answered all the same
            if missing := [each for each in found if isinstance(each, bytes)]:
                snapshot = await self._cache.read(missing)
        return [
            each if isinstance(each, pb.ValidateResponse) else _verdict(request, each, snapshot)
            for request, each in zip(requests, found, strict=True)
        ]

    def _from_memory(self, request: pb.ValidateRequest) -> pb.ValidateResponse | Digest:
        """Return the verdict, or where the database has to be asked the digest of the key."""
        digest = digest_of(request.api_key)
        if digest is None:
            return messages.invalid_key("", 0)
        known = self._cache.get(digest)
        if known is None:
            return digest
        epoch, revision, entry = known
        if entry is None or not entry.key.origins.admits_all:
            return messages.verdict(request, epoch, revision, entry.key if entry else None)
        if entry.response_revision != revision:  # for a key that any origin may use it is the same message each time
            entry.response, entry.response_revision = messages.verdict(request, epoch, revision, entry.key), revision
        response: pb.ValidateResponse = entry.response
        return response

    async def Issue(self, request: pb.IssueRequest, context: Context) -> pb.IssueResponse:
        """Create the project's key, and the project if it is new."""
        project_id = parse_project_id(request.project_id)
        origins = _normalised(request)
        api_key, new_key = _new_key()
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        key, origins, revision = await self._finish(self._issue(project_id, origins, new_key, _caller(context)))
        return pb.IssueResponse(
            api_key=api_key.reveal(),
            key=messages.key(key),
            origins=origins,
            revision=revision,
            propagation=await self._propagate(revision, wait_seconds, answer_by),
        )

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeResponse:
        """End a key and issue the next."""
        project_id = parse_project_id(request.project_id)
        key_id = parse_key_id(request.key_id) if request.HasField("key_id") else None
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        api_key, new_key = _new_key()
        outcome = await self._finish(self._revoke(project_id, key_id, new_key, _caller(context)))
        next_key = outcome.next_key
        return pb.RevokeResponse(
            api_key=api_key.reveal() if next_key else "",
            key=messages.key(next_key) if next_key else None,
            revoked_key=messages.key(outcome.key),
            revision=outcome.revision,
            propagation=await self._propagate(outcome.revision, wait_seconds, answer_by),
            already_revoked=next_key is None,  # rule 11: nothing was committed, and the wait is as for the first call
        )

    async def SetOrigins(self, request: pb.SetOriginsRequest, context: Context) -> pb.SetOriginsResponse:
        """Replace the project's origin list."""
        project_id = parse_project_id(request.project_id)
        origins = _normalised(request)
        wait_seconds, answer_by = _wait_seconds(request), self._watch.answer_by(context.time_remaining())
        revision, is_new = await self._finish(self._set_origins(project_id, origins, _caller(context)))
        return pb.SetOriginsResponse(
            origins=origins,
            revision=revision,
            propagation=await self._propagate(revision, wait_seconds, answer_by),
            already_set=not is_new,  # rule 11: nothing was committed, and the wait is as for the first call
        )

    # grpc.aio also takes a coroutine that writes to its context; the stub knows generators only.
    async def Watch(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.WatchRequest], context: Any
    ) -> None:
        """Serve one holder's stream."""

        async def keep_alives() -> AsyncIterator[KeepAlive]:
            async for request in request_iterator:
                yield messages.keep_alive(request)

        async def send(event: Event) -> None:
            await context.write(messages.event(event))

        await self._watch.serve(keep_alives(), send, self._callers.caller(context).address)

    async def _propagate(self, revision: int, wait_seconds: float, answer_by: float) -> pb.Propagation:
        bound = self._watch.lease_bound()  # what is granted after the commit counts only with it (rules 1 and 3)
        propagation = await self._watch.propagate(revision, wait_seconds, answer_by)
        if propagation is None:
            return pb.Propagation(effective_by=messages.timestamp(bound))
        confirmed = [row for row in propagation.confirmed.values() if not row.is_index]
        return pb.Propagation(
            effective_by=messages.timestamp(propagation.effective_by),
            effective=propagation.is_effective,
            confirmed=map(messages.holder, confirmed[:_NAMED_MAX]),
            pending=map(messages.holder, propagation.named(_NAMED_MAX)),
            confirmed_count=len(confirmed),
            pending_count=len(propagation.pending),
        )

    # What is committed is logged, also when the caller is gone.

    async def _issue(
        self, project_id: ProjectId, origins: Sequence[str], new_key: NewKey, caller: str
    ) -> tuple[Key, tuple[str, ...], Revision]:
        known = self._feed.revision
        key, origins, revision = await self._store.issue(project_id, origins, new_key, caller)
        self._committed("key_issued", known, revision, project_id=project_id, key_id=key.key_id, caller=caller)
        return key, origins, revision

    async def _revoke(self, project_id: ProjectId, key_id: KeyId | None, new_key: NewKey, caller: str) -> Revoked:
        known = self._feed.revision
        outcome = await self._store.revoke(project_id, key_id, new_key, caller)
        if outcome.next_key is not None:
            ids = {"key_id": outcome.key.key_id, "next_key_id": outcome.next_key.key_id}
            self._committed("key_revoked", known, outcome.revision, project_id=project_id, **ids, caller=caller)
        return outcome

    async def _set_origins(self, project_id: ProjectId, origins: Sequence[str], caller: str) -> tuple[Revision, bool]:
        known = self._feed.revision
        revision, is_new = await self._store.set_origins(project_id, origins, caller)
        if is_new:
            self._committed("origins_set", known, revision, project_id=project_id, caller=caller)
        return revision, is_new

    def _committed(self, event: str, known: int, revision: Revision, **fields: str) -> None:
        self._feed.lose_unless_new(revision, known)
        _log.info(event, **fields, revision=revision)

    async def _finish(self, mutation: Coroutine[Any, Any, _T]) -> _T:
        """Run a mutation to its end even if its caller goes away: it is either not begun or committed, never cut."""
        task = asyncio.create_task(mutation)
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        task.add_done_callback(lambda _: self._feed.wake())
        return await asyncio.shield(task)


def _wait_seconds(request: Any) -> float:
    """Return how long the caller would wait for the change to hold everywhere."""
    if not request.HasField("wait"):
        return _WAIT_SECONDS_DEFAULT
    wait_seconds: float = request.wait.seconds + request.wait.nanos / 1e9
    if wait_seconds < 0:
        raise InvalidArgumentError("wait: must not be negative")
    return min(wait_seconds, _WAIT_SECONDS_MAX)


def _caller(context: Context) -> str:
    """Who is to stand in the audit trail: what the caller, whom the call guard knows to be admin, calls itself."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-authsvc-caller" and isinstance(value, str) and value.isprintable():
            return value[:_CALLER_CHARACTERS_MAX] or "admin"
        if key == "x-authsvc-caller-bin" and isinstance(value, bytes):  # for names beyond ASCII: UTF-8
            name = value.decode(errors="replace")[:_CALLER_CHARACTERS_MAX]
            return name if name and name.isprintable() else "admin"
    return "admin"


def _normalised(request: pb.IssueRequest | pb.SetOriginsRequest) -> tuple[str, ...]:
    try:
        return normalise_list(request.origins, allow_public_suffix=request.allow_public_suffix)
    except OriginEntryError as error:
        raise InvalidArgumentError(str(error)) from None


def _new_key() -> tuple[ApiKey, NewKey]:
    api_key = generate_api_key()
    return api_key, NewKey(generate_key_id(), api_key.digest)


def _verdict(request: pb.ValidateRequest, digest: Digest, snapshot: Snapshot | None) -> pb.ValidateResponse:
    if snapshot is None:
        return pb.ValidateResponse()
    return messages.verdict(request, snapshot.epoch, snapshot.revision, snapshot.keys.get(digest))
