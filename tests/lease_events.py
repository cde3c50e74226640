"""What the key service sends on a Watch stream."""

from collections.abc import Sequence
from datetime import timedelta

from authsvc.client.api_key import Digest
from authsvc.v1 import key_service_pb2 as pb


def change(revision: int, digests: Sequence[Digest] = ()) -> pb.WatchResponse:
    return pb.WatchResponse(change=pb.ChangeEvent(revision=revision, key_digests=digests))


def lease(sequence: int, duration_seconds: float, revision: int) -> pb.WatchResponse:
    event = pb.LeaseEvent(sequence=sequence, revision=revision)
    event.duration.FromTimedelta(timedelta(seconds=duration_seconds))
    return pb.WatchResponse(lease=event)


def reset(epoch: str, revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(reset=pb.ResetEvent(epoch=epoch, revision=revision))
