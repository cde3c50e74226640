"""OperationsService: who holds leases, and the audit trail, page by page."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2
from tests.authsvc.conftest import Service
from tests.authsvc.revocation.watching import Watcher, issue, revoke


async def list_changes(service: Service, **fields: Any) -> list[operations_pb2.Change]:
    request = operations_pb2.ListChangesRequest(**fields)
    answer = await service.operations.ListChanges(request, metadata=service.token())
    return list(answer.changes)


async def test_holders_are_listed_by_name_with_how_far_behind_each_is_and_until_when(service: Service) -> None:
    watchers = {name: Watcher(service, name=name) for name in ("zeta", "alpha", "left")}
    for watcher in watchers.values():
        await watcher.attach()
    await watchers["left"].renew(release=True)
    assert await watchers["left"].call.read() is grpc.aio.EOF
    before = datetime.now(UTC)
    await issue(service, wait_seconds=0)
    await watchers["zeta"].change()
    await watchers["zeta"].acknowledge(1)
    answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
    assert [(holder.name, holder.acknowledged_revision) for holder in answer.holders] == [("alpha", 0), ("zeta", 1)]
    assert [holder.holder_id for holder in answer.holders] == [watchers[name].holder_id for name in ("alpha", "zeta")]
    assert answer.revision == 1
    assert {holder.epoch for holder in answer.holders} == {answer.epoch} == {watchers["zeta"].epoch}
    assert before <= answer.now.ToDatetime(UTC) <= datetime.now(UTC)
    for holder in answer.holders:
        assert holder.lease_expire_time.ToDatetime() - holder.renew_time.ToDatetime() == timedelta(seconds=65)


async def test_changes_are_listed_in_order_with_who_did_what_where_and_when(service: Service) -> None:
    before = datetime.now(UTC)
    caller = (*service.token(), ("x-authsvc-caller", "ada"))
    await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=caller)
    await revoke(service)
    await service.keys.SetOrigins(pb.SetOriginsRequest(project_id="demo", origins=["example.com"]), metadata=caller)
    changes = await list_changes(service)
    assert [(c.revision, c.kind, c.project_id, c.caller) for c in changes] == [
        (1, "issue", "demo", "ada"),
        (2, "revoke", "demo", "admin"),
        (3, "set_origins", "demo", "ada"),
    ]
    keys = (
        await service.projects.ListKeys(project_pb2.ListKeysRequest(project_id="demo"), metadata=service.token())
    ).keys
    second, first = (key.key_id for key in keys)
    assert [(c.key_id, c.revoked_key_id) for c in changes] == [(first, ""), (second, first), ("", "")]
    times = [before, *(change.create_time.ToDatetime(UTC) for change in changes), datetime.now(UTC)]
    assert times == sorted(times)


async def test_pages_of_changes_join_without_gap_or_repeat(service: Service) -> None:
    for number in range(7):
        await issue(service, "even" if number == 0 else f"p{number}")
    await revoke_project(service, "even")
    seen: list[int] = []
    while page := await list_changes(service, after_revision=seen[-1] if seen else 0, page_size=3):
        assert len(page) <= 3
        seen += [change.revision for change in page]
    assert seen == list(range(1, 9))
    mine = await list_changes(service, project_id="even", page_size=1)
    mine += await list_changes(service, project_id="even", after_revision=mine[-1].revision)
    assert [change.revision for change in mine] == [1, 8]
    assert await list_changes(service, project_id="nobody") == []


async def test_a_change_that_names_no_key_is_listed_without_one(service: Service) -> None:
    """The trail stays readable whatever a row says."""
    await issue(service)
    await revoke(service)
    with closing(sqlite3.connect(service.state_dir / "authsvc.db")) as connection, connection:
        connection.execute("UPDATE changes SET invalidated_digests = '[]'")
    assert [(c.kind, c.key_id, c.revoked_key_id) for c in await list_changes(service)] == [
        ("issue", "", ""),
        ("revoke", "", ""),
    ]


async def revoke_project(service: Service, project_id: str) -> None:
    await service.keys.Revoke(pb.RevokeRequest(project_id=project_id), metadata=service.token())


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"after_revision": -1}, "after_revision"), ({"page_size": -1}, "page_size"), ({"project_id": "No!"}, "project")],
)
async def test_a_bad_request_is_refused_by_name(service: Service, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await list_changes(service, **fields)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named in str(caught.value.details())


@pytest.mark.parametrize(
    ("method", "request_"),
    [("ListHolders", operations_pb2.ListHoldersRequest()), ("ListChanges", operations_pb2.ListChangesRequest())],
)
async def test_bridges_see_neither(service: Service, method: str, request_: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(service.operations, method)(request_, metadata=service.token("bridge"))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
