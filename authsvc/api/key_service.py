"""KeyService: protobuf to domain and back, nothing else. `call_guard` turns what is raised here into a status."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from authsvc.api import messages
from authsvc.api.callers import Callers
from authsvc.api.messages import Context
from authsvc.client.api_key import ApiKey, Digest, digest_of
from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import InvalidArgumentError, StoreUnavailableError
from authsvc.keys import generate_api_key, generate_key_id, parse_key_id, parse_project_id
from authsvc.origins import normalise_list
from authsvc.revocation.key_cache import KeyCache
from authsvc.revocation.watch import Watch
from authsvc.storage.key_store import KeyStore
from authsvc.storage.records import Mutated, NewKey, Snapshot
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc

_log = structlog.get_logger("authsvc")

_BATCH_MAX = 256
_CALLER_CHARACTERS_MAX = 128
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
        if isinstance(found, pb.ValidateResponse):
            return found
        return _verdict(request, found, await self._cache.read([found]))

    async def BatchValidate(self, request: pb.BatchValidateRequest, context: Context) -> pb.BatchValidateResponse:
        """Return a verdict for each request: from memory, and for all others after one look at the database."""
        return pb.BatchValidateResponse(responses=await self._responses(request.requests))

    async def StreamValidate(
        self, request_iterator: AsyncIterator[pb.StreamValidateRequest], context: Context
    ) -> AsyncIterator[pb.StreamValidateResponse]:
        """Return the verdicts of one batch after the other."""
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
        epoch, revision, key = known
        if key is None or not key.origins.admits_all:
            return messages.verdict(request, epoch, revision, key)
        if key.response_revision != revision:  # for a key that any origin may use it is the same message each time
            key.response, key.response_revision = messages.verdict(request, epoch, revision, key), revision
        response: pb.ValidateResponse = key.response
        return response

    async def Issue(self, request: pb.IssueRequest, context: Context) -> pb.IssueResponse:
        """Create the project's key, and the project if it is new."""
        api_key, new_key = _new_key()
        project_id = parse_project_id(request.project_id)
        origins = normalise_list(request.origins, allow_public_suffix=request.allow_public_suffix)
        issue = partial(self._store.issue, project_id, origins, new_key)
        outcome, propagation = await self._mutate("key_issued", issue, request, context)
        return pb.IssueResponse(
            api_key=api_key.reveal(),
            key=messages.key(outcome.key) if outcome.key else None,
            origins=outcome.origins,
            revision=outcome.revision,
            propagation=propagation,
        )

    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeResponse:
        """End a key and issue the next."""
        project_id = parse_project_id(request.project_id)
        key_id = parse_key_id(request.key_id) if request.HasField("key_id") else None
        api_key, new_key = _new_key()
        revoke = partial(self._store.revoke, project_id, key_id, new_key)
        outcome, propagation = await self._mutate("key_revoked", revoke, request, context)
        return pb.RevokeResponse(
            api_key=api_key.reveal() if outcome.is_new else "",
            key=messages.key(outcome.key) if outcome.key else None,
            revoked_key=messages.key(outcome.revoked_key) if outcome.revoked_key else None,
            revision=outcome.revision,
            propagation=propagation,
            already_revoked=not outcome.is_new,
        )

    async def SetOrigins(self, request: pb.SetOriginsRequest, context: Context) -> pb.SetOriginsResponse:
        """Replace the project's origin list."""
        project_id = parse_project_id(request.project_id)
        origins = normalise_list(request.origins, allow_public_suffix=request.allow_public_suffix)
        set_origins = partial(self._store.set_origins, project_id, origins)
        outcome, propagation = await self._mutate("origins_set", set_origins, request, context)
        return pb.SetOriginsResponse(
            origins=outcome.origins,
            revision=outcome.revision,
            propagation=propagation,
            already_set=not outcome.is_new,
        )

    # grpc.aio also takes a coroutine that writes to its context; the stub knows generators only.
    async def Watch(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.WatchRequest], context: Any
    ) -> None:
        """Serve one holder's stream."""

        async def keep_alives() -> AsyncIterator[KeepAlive]:
            async for request in request_iterator:
                yield messages.keep_alive(request)

        await self._watch.serve(keep_alives(), context.write, self._callers.caller(context).address)

    async def _mutate(
        self, event: str, mutate: Callable[[str], Awaitable[Mutated]], request: Any, context: Context
    ) -> tuple[Mutated, pb.Propagation]:
        """Run a mutation to its end even if its caller goes away: it is either not begun or committed, never cut.

        Return its outcome and, after the wait that the request asks for, how far it holds: where nothing was committed
        (rule 11) as for the first call.
        """
        wait_seconds, respond_by = _wait_seconds(request), self._watch.respond_by(context.time_remaining())
        task = asyncio.create_task(self._commit(event, mutate, request.project_id, _caller(context)))
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        task.add_done_callback(lambda _: self._feed.wake())
        outcome = await asyncio.shield(task)
        return outcome, await self._propagate(outcome.revision, wait_seconds, respond_by)

    async def _commit(
        self, event: str, mutate: Callable[[str], Awaitable[Mutated]], project_id: str, caller: str
    ) -> Mutated:
        """Commit a mutation, and log it, also when its caller is gone."""
        known = self._feed.revision
        outcome = await mutate(caller)
        if outcome.is_new:
            self._feed.lose_unless_new(outcome.revision, known)
            ids = [key.key_id for key in (outcome.revoked_key, outcome.key) if key is not None]
            fields = dict(zip(("key_id", "next_key_id"), ids, strict=False))
            _log.info(event, project_id=project_id, **fields, caller=caller, revision=outcome.revision)
        return outcome

    async def _propagate(self, revision: int, wait_seconds: float, respond_by: float) -> pb.Propagation:
        bound = self._watch.lease_bound()  # what is granted after the commit counts only with it (rules 1 and 3)
        propagation = await self._watch.propagate(revision, wait_seconds, respond_by)
        if propagation is None:
            return pb.Propagation(effective_by=messages.timestamp(bound))
        confirmed = [row for row in propagation.confirmed.values() if not row.is_key_cache]
        named_max = self._watch.limits.named_max
        return pb.Propagation(
            effective_by=messages.timestamp(propagation.effective_by),
            effective=propagation.is_effective,
            confirmed=map(messages.holder, confirmed[:named_max]),
            pending=map(messages.holder, propagation.named(named_max)),
            confirmed_count=len(confirmed),
            pending_count=len(propagation.pending),
        )


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


def _new_key() -> tuple[ApiKey, NewKey]:
    api_key = generate_api_key()
    return api_key, NewKey(generate_key_id(), api_key.digest)


def _verdict(request: pb.ValidateRequest, digest: Digest, snapshot: Snapshot | None) -> pb.ValidateResponse:
    if snapshot is None:
        return pb.ValidateResponse()
    return messages.verdict(request, snapshot.epoch, snapshot.revision, snapshot.keys.get(digest))
