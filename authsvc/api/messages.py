"""Protobuf messages of domain values, and what several services read from requests.

The three servicers (`key_service`, `project_service`, `operations_service`) call it, and `interceptors`.
"""

from datetime import datetime, timedelta
from typing import Any, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.client.api_key import PREFIX
from authsvc.errors import InvalidArgumentError
from authsvc.storage.records import Key, LeaseRow
from authsvc.v1 import key_service_pb2 as pb

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic for the type checker only

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
    message = pb.Key(key_id=key.key_id, project_id=key.project_id, prefix=PREFIX, creator=key.creator)
    message.create_time.CopyFrom(timestamp(key.create_time))
    if key.revoke_time is not None:
        message.revoke_time.CopyFrom(timestamp(key.revoke_time))
    return message


def duration(value: timedelta) -> Duration:
    """Return a Duration."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def timestamp(value: datetime) -> Timestamp:
    """Return a Timestamp of an aware instant."""
    message = Timestamp()
    message.FromDatetime(value)
    return message
