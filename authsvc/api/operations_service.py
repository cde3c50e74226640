"""OperationsService: who holds leases, and the audit trail, as messages."""

from collections.abc import Mapping
from heapq import nsmallest

from authsvc.api import messages
from authsvc.api.messages import Context
from authsvc.client.api_key import Digest
from authsvc.errors import InvalidArgumentError
from authsvc.keys import KeyId, parse_project_id
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import Change, ChangeKind, LeaseRow, Revision
from authsvc.v1 import operations_service_pb2 as pb
from authsvc.v1 import operations_service_pb2_grpc as pb_grpc

_HOLDERS_MAX = 5000  # of at most 650 bytes, since clients take 4 MiB


class OperationsService(pb_grpc.OperationsServiceServicer):
    """Shows operators who holds leases, and the audit trail."""

    def __init__(self, store: KeyStore, leases: LeaseStore) -> None:
        self._store = store
        self._leases = leases

    async def ListHolders(self, request: pb.ListHoldersRequest, context: Context) -> pb.ListHoldersResponse:
        """Return who may reuse verdicts."""
        rows, state = await self._leases.rows()
        named = nsmallest(_HOLDERS_MAX, rows, key=lambda row: (not row.has_confirmed(state.epoch), _by_name(row)))
        return pb.ListHoldersResponse(
            holders=map(messages.holder, sorted(named, key=_by_name)),
            revision=state.revision,
            now=messages.timestamp(state.time),
            epoch=state.epoch,
        )

    async def ListChanges(self, request: pb.ListChangesRequest, context: Context) -> pb.ListChangesResponse:
        """Return a page of the audit trail."""
        if request.after_revision < 0 or request.before_revision < 0:
            raise InvalidArgumentError("after_revision, before_revision: must not be negative")
        changes = await self._store.changes(
            after=Revision(request.after_revision),
            limit=messages.page_size(request.page_size),
            project_id=parse_project_id(request.project_id) if request.project_id else None,
            before=Revision(request.before_revision) if request.before_revision else None,
            is_newest_first=request.newest_first,
        )
        key_ids = await self._store.key_ids(changes)
        return pb.ListChangesResponse(changes=[_change(change, key_ids) for change in changes])


def _by_name(row: LeaseRow) -> tuple[str, str]:
    return row.name, row.holder_id


def _change(change: Change, key_ids: Mapping[Digest, KeyId]) -> pb.Change:
    ids = [key_ids.get(digest, "") for digest in change.invalidated_digests]
    issued = revoked = ""
    match change.kind, ids:  # in the order of `Change.invalidated_digests`
        case ChangeKind.ISSUE, [issued]:
            pass
        case ChangeKind.REVOKE, [revoked, issued]:
            pass
    return pb.Change(
        revision=change.revision,
        kind=change.kind,
        project_id=change.project_id,
        caller=change.caller,
        create_time=messages.timestamp(change.create_time),
        key_id=issued,
        revoked_key_id=revoked,
    )
