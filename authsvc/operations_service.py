"""OperationsService: who holds leases, and the audit trail, as messages.

Registered by `app`, called by gRPC behind `interceptors`.
"""

from authsvc import messages
from authsvc.errors import InvalidArgumentError
from authsvc.keys import parse_project_id
from authsvc.lease_store import LeaseStore
from authsvc.messages import Context
from authsvc.store import Change, KeyStore, Revision
from protos.authsvc.v1 import key_service_pb2 as pb
from protos.authsvc.v1 import key_service_pb2_grpc as pb_grpc


class OperationsService(pb_grpc.OperationsServiceServicer):
    """Shows operators who holds leases, and the audit trail."""

    def __init__(self, store: KeyStore, leases: LeaseStore) -> None:
        """Read from both, which stay the caller's to close."""
        self._store = store
        self._leases = leases

    async def ListHolders(self, request: pb.ListHoldersRequest, context: Context) -> pb.ListHoldersResponse:
        """Return who may reuse verdicts."""
        rows, state = await self._leases.rows()
        holders = map(messages.holder, sorted(rows, key=lambda row: (row.name, row.holder_id)))
        return pb.ListHoldersResponse(holders=holders, revision=state.revision, now=messages.timestamp(state.time))

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
        return pb.ListChangesResponse(changes=map(_change, changes))


def _change(change: Change) -> pb.Change:
    return pb.Change(
        revision=change.revision,
        kind=change.kind,
        project_id=change.project_id,
        caller=change.caller,
        create_time=messages.timestamp(change.create_time),
    )
