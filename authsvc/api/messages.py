"""Protobuf messages of domain values, and what several services read from requests."""

from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client.api_key import PREFIX
from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import InvalidArgumentError
from authsvc.storage.records import KEY_CACHE_ID_PREFIX, ActiveKey, Key, LeaseRow
from authsvc.v1 import key_service_pb2 as pb

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic for the type checker only

_CACHE_TTL = Duration(seconds=60)
# A key may be issued right after it was probed; callers that hold no lease should notice soon.
_INVALID_CACHE_TTL = Duration(seconds=5)
_PAGE_SIZE_DEFAULT = 50
_PAGE_SIZE_MAX = 100  # projects with 100 origins of 260 characters each are 2.6 MB, and gRPC's clients take 4 MiB


def parse(handler: Any, message: Any) -> Any:
    """Return the request that a message of a method is, whose handler gRPC has; raise InvalidArgumentError."""
    try:
        return handler.request_deserializer(message)
    except Exception:  # noqa: BLE001 - protobuf's own error, and its text may repeat the message
        raise InvalidArgumentError("the request is not a message of this method") from None


def page_size(requested: int) -> int:
    """Return how many entries a page has; raise InvalidArgumentError."""
    if requested < 0:
        raise InvalidArgumentError("page_size: must not be negative")
    return min(requested or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)


def holder(row: LeaseRow) -> pb.Holder:
    """Return a holder's message."""
    return pb.Holder(
        holder_id=row.holder_id,
        name=row.name,
        acknowledged_revision=row.acknowledged_revision,
        lease_expire_time=timestamp(row.expire_time),
        renew_time=timestamp(row.renew_time),
        epoch=row.epoch,
    )


def key(key: Key) -> pb.Key:
    """Return a key's message."""
    return pb.Key(
        key_id=key.key_id,
        project_id=key.project_id,
        prefix=PREFIX,
        creator=key.creator,
        create_time=timestamp(key.create_time),
        revoke_time=timestamp(key.revoke_time) if key.revoke_time else None,
    )


def timestamp(value: datetime) -> Timestamp:
    """Return a Timestamp of an aware instant."""
    message = Timestamp()
    message.FromDatetime(value)
    return message


def verdict(request: pb.ValidateRequest, epoch: str, revision: int, key: ActiveKey | None) -> pb.ValidateResponse:
    """Return the verdict on a key, None for an unknown one, as of a revision."""
    if key is None:
        return invalid_key(epoch, revision)
    admitted = key.origins.admits(request.origin if request.HasField("origin") else None)
    return pb.ValidateResponse(
        verdict=pb.VERDICT_ALLOWED if admitted else pb.VERDICT_ORIGIN_NOT_ALLOWED,
        project_id=key.project_id,
        key_id=key.key_id,
        any_origin=key.origins.admits_all,
        cache_ttl=_CACHE_TTL,
        revision=revision,
        epoch=epoch,
    )


@lru_cache(maxsize=8)
def invalid_key(epoch: str, revision: int) -> pb.ValidateResponse:
    """Return the same message for all unknown keys: it is never changed."""
    return pb.ValidateResponse(
        verdict=pb.VERDICT_INVALID_KEY, any_origin=True, cache_ttl=_INVALID_CACHE_TTL, revision=revision, epoch=epoch
    )


def keep_alive(request: pb.WatchRequest) -> KeepAlive:
    """Return what a holder says; raise InvalidArgumentError."""
    if not 16 <= len(request.holder_id) <= 64 or not (request.holder_id.isascii() and request.holder_id.isprintable()):
        raise InvalidArgumentError("holder_id: expected 16 to 64 printable ASCII characters")
    if request.holder_id.startswith(KEY_CACHE_ID_PREFIX):
        raise InvalidArgumentError(f"holder_id: {KEY_CACHE_ID_PREFIX}… is the service's own")
    for field, text, characters_max in (("name", request.name, 128), ("epoch", request.epoch, 32)):
        if len(text) > characters_max or "\0" in text:
            raise InvalidArgumentError(f"{field}: expected at most {characters_max} characters, without U+0000")
    if request.applied_revision < 0:
        raise InvalidArgumentError("applied_revision: must not be negative")
    return KeepAlive(
        request.epoch, request.holder_id, request.name, request.sequence, request.applied_revision, request.release
    )
