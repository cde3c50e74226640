"""The gRPC contract of authsvc.v1, over a real channel."""

import asyncio
import base64
import hashlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from authsvc.errors import InvalidArgumentError, KeyServiceError
from authsvc.runtime.environment import ConfigurationError
from authsvc.storage.database import Database
from authsvc.storage.key_store import KeyStore
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2
from tests.authsvc.conftest import Service, running

Code = grpc.StatusCode
UNKNOWN_KEY = "dt_" + "0" * 24


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def issue(service: Service, project_id: str = "demo", *origins: str) -> Any:
    return await service.keys.Issue(
        pb.IssueRequest(project_id=project_id, origins=origins), metadata=service.token("admin")
    )


async def validate(service: Service, api_key: str, origin: str | None = None) -> Any:
    request = pb.ValidateRequest(api_key=api_key, origin=origin)
    return await service.keys.Validate(request, metadata=service.token("bridge"))


async def test_a_key_is_issued_validated_revoked_and_replaced(service: Service) -> None:
    before = datetime.now(UTC)
    issued = await issue(service)
    assert re.fullmatch(r"dt_[0-9a-f]{24}", issued.api_key)
    assert re.fullmatch(r"key_[0-9a-f]{16}", issued.key.key_id)
    assert (issued.key.project_id, issued.key.prefix, issued.revision) == ("demo", "dt_", 1)
    assert before <= issued.key.create_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert not issued.key.HasField("revoke_time")

    allowed = await validate(service, issued.api_key)
    assert re.fullmatch(r"[0-9a-f]{32}", allowed.epoch)
    assert MessageToDict(allowed) == {
        "epoch": allowed.epoch,
        "verdict": "VERDICT_ALLOWED",
        "projectId": "demo",
        "keyId": issued.key.key_id,
        "anyOrigin": True,
        "cacheTtl": "60s",
        "revision": "1",
    }

    request = pb.RevokeRequest(project_id="demo", key_id=issued.key.key_id)
    revoked = await service.keys.Revoke(request, metadata=service.token())
    assert revoked.revoked_key.key_id == issued.key.key_id
    assert revoked.revoked_key.HasField("revoke_time")
    assert (revoked.already_revoked, revoked.revision) == (False, 2)
    assert (await validate(service, issued.api_key)).verdict == pb.VERDICT_INVALID_KEY
    assert (await validate(service, revoked.api_key)).key_id == revoked.key.key_id

    again = await service.keys.Revoke(request, metadata=service.token())
    assert (again.already_revoked, again.api_key, again.HasField("key")) == (True, "", False)
    assert again.revoked_key == revoked.revoked_key
    assert (await validate(service, revoked.api_key)).verdict == pb.VERDICT_ALLOWED


@pytest.mark.parametrize(
    "api_key",
    [
        "",
        "dt_",
        UNKNOWN_KEY,
        "dt_" + "0" * 23,
        "dt_" + "0" * 25,
        "DT_" + "0" * 24,
        "dt_" + "A" * 24,
        "x" * 10_000,
        "dt_é",
    ],
)
async def test_a_bad_key_is_a_verdict_that_tells_nothing(service: Service, api_key: str) -> None:
    await issue(service)
    verdict = await validate(service, api_key, "https://example.com")
    assert len(verdict.epoch) == (32 if api_key == UNKNOWN_KEY else 0)
    verdict.ClearField("epoch")
    assert MessageToDict(verdict, always_print_fields_with_no_presence=True) == {
        "verdict": "VERDICT_INVALID_KEY",
        "projectId": "",
        "keyId": "",
        "anyOrigin": True,
        "cacheTtl": "5s",
        "revision": "1" if api_key == UNKNOWN_KEY else "0",
        "epoch": "",
    }


async def test_origins_are_normalised_kept_and_applied(service: Service) -> None:
    issued = await issue(service, "demo", "Example.COM", "https://*.Example.org:443", "example.com.")
    assert list(issued.origins) == ["example.com", "https://*.example.org"]
    cases = {
        None: pb.VERDICT_ALLOWED,
        "http://example.com:3000": pb.VERDICT_ALLOWED,
        "https://a.example.org": pb.VERDICT_ALLOWED,
        "https://example.org": pb.VERDICT_ORIGIN_NOT_ALLOWED,
        "": pb.VERDICT_ORIGIN_NOT_ALLOWED,
        "null": pb.VERDICT_ORIGIN_NOT_ALLOWED,
    }
    for origin, expected in cases.items():
        verdict = await validate(service, issued.api_key, origin)
        assert verdict.verdict == expected, origin
        assert (verdict.project_id, verdict.key_id) == ("demo", issued.key.key_id)
        assert not verdict.any_origin
    request = pb.SetOriginsRequest(project_id="demo", origins=[])
    emptied = await service.keys.SetOrigins(request, metadata=service.token())
    assert (list(emptied.origins), emptied.revision) == ([], 2)
    assert (await validate(service, issued.api_key, "null")).any_origin


async def test_a_bad_origin_entry_is_named_and_nothing_is_changed(service: Service) -> None:
    await issue(service, "demo", "example.com")
    request = pb.SetOriginsRequest(project_id="demo", origins=["good.example", "https://bad.example/path"])
    code, text = await refused(service.keys.SetOrigins(request, metadata=service.token()))
    assert code == Code.INVALID_ARGUMENT
    assert "https://bad.example/path" in text
    got = await service.projects.GetProject(project_pb2.GetProjectRequest(project_id="demo"), metadata=service.token())
    assert list(got.project.origins) == ["example.com"]


@pytest.mark.parametrize("project_id", ["", "-a", "a-", "A", "a_b", "a" * 64, "ä", "a b", "a\n", "a/../b"])
async def test_a_bad_project_id_is_named(service: Service, project_id: str) -> None:
    code, text = await refused(issue(service, project_id))
    assert code == Code.INVALID_ARGUMENT
    assert "project id" in text


@pytest.mark.parametrize("project_id", ["a", "0", "a" * 63, "a--b", "9-z"])
async def test_a_good_project_id_is_taken(service: Service, project_id: str) -> None:
    assert (await issue(service, project_id)).key.project_id == project_id


async def test_misuse_has_the_status_that_says_so(service: Service) -> None:
    issued = await issue(service)
    admin = service.token()
    revoke, get, keys = service.keys.Revoke, service.projects.GetProject, service.projects.ListKeys
    assert (await refused(issue(service)))[0] == Code.ALREADY_EXISTS
    for call, request in (
        (revoke, pb.RevokeRequest(project_id="nobody")),
        (revoke, pb.RevokeRequest(project_id="demo", key_id="")),
        (revoke, pb.RevokeRequest(project_id="demo", key_id="key_0")),
        (service.keys.SetOrigins, pb.SetOriginsRequest(project_id="nobody")),
        (get, project_pb2.GetProjectRequest(project_id="nobody")),
        (keys, project_pb2.ListKeysRequest(project_id="nobody")),
    ):
        assert (await refused(call(request, metadata=admin)))[0] == Code.NOT_FOUND
    assert (await validate(service, issued.api_key)).verdict == pb.VERDICT_ALLOWED


def encoded(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


@pytest.mark.parametrize("token", ["x", "!!!", "ÿ", encoded("-1"), encoded("9" * 19), encoded("\u0663"), encoded("A")])
async def test_a_page_token_that_no_response_carried_is_refused_by_its_name(service: Service, token: str) -> None:
    """Also one that would name another page, or another project, if only it were read so: U+0663 is a digit."""
    await issue(service)
    for call, request in (
        (service.projects.ListKeys, project_pb2.ListKeysRequest(project_id="demo", page_token=token)),
        (service.projects.ListProjects, project_pb2.ListProjectsRequest(page_token=token)),
    ):
        if (token, call) != (encoded("9" * 19), service.projects.ListProjects):  # which a project may be called
            refusal = (Code.INVALID_ARGUMENT, "page_token: not one that a response carried")
            assert await refused(call(request, metadata=service.token())) == refusal


async def test_a_query_that_no_project_id_can_contain_is_refused_by_its_name(service: Service) -> None:
    """SQLite cannot compare with one that is far longer."""
    await issue(service, "a" * 63)
    request = project_pb2.ListProjectsRequest(query="a" * 63)
    found = await service.projects.ListProjects(request, metadata=service.token())
    assert [project.project_id for project in found.projects] == ["a" * 63]
    for query in ("a" * 64, "a" * 60_000, "\0"):
        call = service.projects.ListProjects(project_pb2.ListProjectsRequest(query=query), metadata=service.token())
        code, text = await refused(call)
        assert (code, text.partition(":")[0]) == (Code.INVALID_ARGUMENT, "query")


async def test_a_page_has_a_hundred_entries_at_the_most(service: Service) -> None:
    """What is more than a client would take in one message is cut, not refused."""
    for number in range(102):
        await issue(service, f"p{number}")
    for size, count in ((0, 50), (100, 100), (101, 100), (2**31 - 1, 100)):
        request = project_pb2.ListProjectsRequest(page_size=size)
        page = await service.projects.ListProjects(request, metadata=service.token())
        assert len(page.projects) == count
        listed = await service.operations.ListChanges(
            operations_pb2.ListChangesRequest(page_size=size), metadata=service.token()
        )
        assert len(listed.changes) == count


async def test_a_negative_page_size_is_refused(service: Service) -> None:
    call = service.projects.ListProjects(project_pb2.ListProjectsRequest(page_size=-1), metadata=service.token())
    assert (await refused(call))[0] == Code.INVALID_ARGUMENT


async def test_pages_join_and_the_last_has_no_token(service: Service) -> None:
    names = [f"p{n}" for n in range(5)]
    for name in names:
        await issue(service, name)
    for _ in range(3):
        await service.keys.Revoke(pb.RevokeRequest(project_id="p0"), metadata=service.token())
    seen, token = [], ""
    while True:
        request = project_pb2.ListProjectsRequest(page_size=2, page_token=token)
        page = await service.projects.ListProjects(request, metadata=service.token())
        seen += [project.project_id for project in page.projects]
        if not (token := page.next_page_token):
            break
    assert seen == names
    seen = []
    while True:
        keys = project_pb2.ListKeysRequest(project_id="p0", page_size=2, page_token=token)
        page = await service.projects.ListKeys(keys, metadata=service.token())
        seen += [key.key_id for key in page.keys]
        if not (token := page.next_page_token):
            break
    assert len(seen) == len(set(seen)) == 4


ADMIN_CALLS: list[tuple[str, str, Any]] = [
    ("keys", "Issue", pb.IssueRequest(project_id="demo")),
    ("keys", "Revoke", pb.RevokeRequest(project_id="demo")),
    ("keys", "SetOrigins", pb.SetOriginsRequest(project_id="demo")),
    ("projects", "GetProject", project_pb2.GetProjectRequest(project_id="demo")),
    ("projects", "ListProjects", project_pb2.ListProjectsRequest()),
    ("projects", "ListKeys", project_pb2.ListKeysRequest(project_id="demo")),
    ("projects", "CheckOrigins", project_pb2.CheckOriginsRequest(entries=["example.com"])),
]


@pytest.mark.parametrize(("stub", "method", "request_"), ADMIN_CALLS, ids=[call[1] for call in ADMIN_CALLS])
async def test_the_bridge_token_cannot_do_what_an_admin_does(
    service: Service, stub: str, method: str, request_: Any
) -> None:
    call = getattr(getattr(service, stub), method)
    assert (await refused(call(request_, metadata=service.token("bridge"))))[0] == Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", ""),),
        (("authorization", "{token}"),),
        (("authorization", "Basic {token}"),),
        (("authorization", "Bearer  {token}"),),
        (("authorization", "Bearer {token}"), ("authorization", "Bearer {token}")),
    ],
)
async def test_no_token_or_a_wrong_one_is_unauthenticated(service: Service, metadata: Any) -> None:
    token = service.token()[0][1].removeprefix("Bearer ")
    sent = tuple((key, value.format(token=token)) for key, value in metadata)
    for method in (service.keys.Validate, service.keys.Issue, service.projects.ListProjects):
        assert (await refused(method(pb.ValidateRequest(), metadata=sent)))[0] == Code.UNAUTHENTICATED


async def test_the_schemes_case_does_not_matter_and_admins_may_validate(service: Service) -> None:
    token = service.token()[0][1].removeprefix("Bearer ")
    answer = await service.keys.Validate(pb.ValidateRequest(), metadata=(("authorization", f"bearer {token}"),))
    assert answer.verdict == pb.VERDICT_INVALID_KEY


async def reflected(service: Service) -> list[str]:
    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    answers = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo(ask())
    return [found.name async for answer in answers for found in answer.list_services_response.service]


async def test_reflection_is_open_and_can_be_switched_off(service: Service, tmp_path: Path) -> None:
    assert {"authsvc.v1.KeyService", "authsvc.v1.ProjectService"} < set(await reflected(service))
    async with running(tmp_path / "closed", AUTHSVC_REFLECTION="false") as closed:
        assert (await refused(reflected(closed)))[0] == Code.UNIMPLEMENTED


async def test_a_method_that_nobody_serves_is_unimplemented(service: Service) -> None:
    call: Any = service.channel.unary_unary("/authsvc.v1.KeyService/Nothing")
    assert (await refused(call(b"", metadata=service.token())))[0] == Code.UNIMPLEMENTED


async def test_an_unexpected_error_shows_its_text_to_neither_the_caller_nor_the_log(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says what it was and where it came from; its text may repeat what the caller sent."""

    async def broken(self: KeyStore, digests: Sequence[bytes]) -> None:
        try:
            raise ValueError(digests[0].hex())
        except ValueError as error:
            raise RuntimeError(digests[0].hex()) from error

    monkeypatch.setattr(KeyStore, "lookup", broken)
    with capture_logs() as logged:
        code, text = await refused(validate(service, UNKNOWN_KEY))
    assert (code, text) == (Code.INTERNAL, "internal error")
    (line,) = (line for line in logged if line["event"] == "call_failed")
    assert (line["log_level"], line["error"]) == ("error", "RuntimeError")
    assert "in broken" in line["traceback"]
    assert "builtins.ValueError" in line["traceback"]
    assert hashlib.sha256(UNKNOWN_KEY.encode()).hexdigest() not in str(logged)


async def test_a_request_over_the_size_limit_is_refused(service: Service) -> None:
    code, _ = await refused(validate(service, "x" * 600_000))
    assert code == Code.RESOURCE_EXHAUSTED


async def test_a_mutation_whose_caller_goes_away_is_committed_whole_and_logged(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = await issue(service)
    entered, gate = asyncio.Event(), asyncio.Event()
    stamp = Database.stamp

    async def gated(*args: Any) -> None:
        entered.set()
        await gate.wait()
        await stamp(*args)

    monkeypatch.setattr(Database, "stamp", gated)
    call = service.keys.Revoke(pb.RevokeRequest(project_id="demo"), metadata=service.token())
    waiting = asyncio.ensure_future(call)
    await entered.wait()
    call.cancel()
    await asyncio.wait([waiting])
    with capture_logs() as logged:
        gate.set()
        request = pb.RevokeRequest(project_id="demo", key_id=issued.key.key_id)
        answer = await service.keys.Revoke(request, metadata=service.token())
    assert answer.already_revoked
    assert [line["revision"] for line in logged if line["event"] == "key_revoked"] == [2]


async def test_every_mutation_is_logged_without_secrets(service: Service) -> None:
    named = (*service.token(), ("x-authsvc-caller", "ada"))
    revoke = pb.RevokeRequest(project_id="demo")
    with capture_logs() as logged:
        issued = await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=named)
        revoked = await service.keys.Revoke(revoke, metadata=named)
        revoke.key_id = issued.key.key_id
        assert (await service.keys.Revoke(revoke, metadata=named)).already_revoked, "nothing is changed"
        for _ in range(2):  # the second time nothing is changed
            request = pb.SetOriginsRequest(project_id="demo", origins=["example.com"])
            assert (await service.keys.SetOrigins(request, metadata=named)).revision == 3
        assert (await refused(issue(service)))[0] == Code.ALREADY_EXISTS
    old, new = issued.key.key_id, revoked.key.key_id
    every = {"project_id": "demo", "caller": "ada", "log_level": "info"}
    assert [line for line in logged if line["log_level"] != "debug"] == [
        {"event": "key_issued", "key_id": old, "revision": 1} | every,
        {"event": "key_revoked", "key_id": old, "next_key_id": new, "revision": 2} | every,
        {"event": "origins_set", "revision": 3} | every,
    ]
    assert issued.api_key not in str(logged)
    assert revoked.api_key not in str(logged)


async def test_refused_callers_are_logged_once_a_second_with_their_number(service: Service) -> None:
    """The operator sees a bridge with a wrong token; somebody who floods cannot fill the disk."""
    wrong = (("authorization", "Bearer canary-token"),)
    started = time.monotonic()
    with capture_logs() as logged:
        for _ in range(30):
            call = service.keys.Validate(pb.ValidateRequest(), metadata=wrong)
            assert (await refused(call))[0] == Code.UNAUTHENTICATED
    warnings = [line for line in logged if line["log_level"] == "warning"]
    assert 1 <= len(warnings) <= 1 + time.monotonic() - started
    first = warnings[0]
    assert (first["event"], first["status"], first["count"]) == ("calls_refused", "UNAUTHENTICATED", 1)
    assert first["method"] == "/authsvc.v1.KeyService/Validate"
    assert (first["address"], first["address_count"], first["addresses"]) == ("127.0.0.1", 1, 1)
    assert "canary" not in str(logged)


@pytest.mark.parametrize(
    ("base", "expected"), [(InvalidArgumentError, Code.INVALID_ARGUMENT), (KeyServiceError, Code.INTERNAL)]
)
async def test_an_error_of_a_narrower_kind_has_the_status_of_its_kind(
    service: Service, monkeypatch: pytest.MonkeyPatch, base: type[Exception], expected: grpc.StatusCode
) -> None:
    async def narrower(self: KeyStore, digest: bytes) -> None:
        raise type("NarrowerError", (base,), {})("why")

    monkeypatch.setattr(KeyStore, "lookup", narrower)
    assert await refused(validate(service, UNKNOWN_KEY)) == (expected, "why")


async def test_a_call_under_way_is_answered_when_the_service_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()
    lookup = KeyStore.lookup

    async def gated(self: KeyStore, digest: Any) -> Any:
        entered.set()
        await gate.wait()
        return await lookup(self, digest)

    monkeypatch.setattr(KeyStore, "lookup", gated)
    async with running(tmp_path / "state") as service:
        waiting = asyncio.create_task(validate(service, UNKNOWN_KEY))
        await entered.wait()
        watching = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        statuses = aiter(watching)
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.SERVING
        service.stop.set()
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.set()
        assert (await waiting).verdict == pb.VERDICT_INVALID_KEY
        watching.cancel()


async def test_the_caller_that_an_admin_names_stands_in_the_audit_trail(service: Service) -> None:
    await service.keys.Issue(
        pb.IssueRequest(project_id="demo"), metadata=(*service.token(), ("x-authsvc-caller", "ada"))
    )
    await service.keys.Revoke(pb.RevokeRequest(project_id="demo"), metadata=service.token())
    with sqlite3.connect(service.state_dir / "authsvc.db") as connection:
        rows = connection.execute("SELECT kind, caller FROM changes ORDER BY revision").fetchall()
    connection.close()
    assert rows == [("issue", "ada"), ("revoke", "admin")]


async def test_tokens_are_made_once_and_are_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with running(state) as service:
        first = {role: service.token(role) for role in ("admin", "bridge")}
    assert first["admin"] != first["bridge"]
    for role in first:
        assert (state / f"{role}-token").stat().st_mode & 0o777 == 0o600
    async with running(state) as service:
        assert {role: service.token(role) for role in first} == first


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"AUTHSVC_LISTEN": "0.0.0.0:0"}, "AUTHSVC_ALLOW_INSECURE"),
        (
            {"AUTHSVC_LISTEN": "0.0.0.0:0", "AUTHSVC_ADMIN_TOKEN": 32 * "a", "AUTHSVC_BRIDGE_TOKEN": 32 * "b"},
            "AUTHSVC_TLS_CERT",
        ),
        ({"AUTHSVC_LISTEN": "nonsense"}, "AUTHSVC_LISTEN"),
        ({"AUTHSVC_ADMIN_TOKEN": 32 * "x", "AUTHSVC_BRIDGE_TOKEN": 32 * "x"}, "AUTHSVC_BRIDGE_TOKEN"),
        ({"AUTHSVC_ADMIN_TOKEN": "sp ace"}, "AUTHSVC_ADMIN_TOKEN"),
        ({"AUTHSVC_TLS_CERT": "cert.pem"}, "AUTHSVC_TLS_KEY"),
        ({"AUTHSVC_TLS_CERT": "no.pem", "AUTHSVC_TLS_KEY": "no.pem"}, "AUTHSVC_TLS_CERT"),
        ({"AUTHSVC_DATABASE_URL": "mysql://x"}, "AUTHSVC_DATABASE_URL"),
        ({"AUTHSVC_STATE_DIR": "/proc/none"}, "AUTHSVC_STATE_DIR"),
    ],
)
async def test_a_configuration_that_cannot_be_used_stops_the_start_by_name(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        async with running(tmp_path / "state", **variables):
            pass


async def test_insecure_listening_can_be_allowed_by_name(tmp_path: Path) -> None:
    async with running(tmp_path / "s", AUTHSVC_LISTEN="0.0.0.0:0", AUTHSVC_ALLOW_INSECURE="true") as service:
        assert service.address.port > 0


async def test_a_taken_port_is_one_clear_error(service: Service, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot listen on {service.address}"):
        async with running(tmp_path / "other", AUTHSVC_LISTEN=str(service.address)):
            pass


async def test_postgresql_with_an_old_schema_refuses_to_start_with_the_commands_name(
    postgres_url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="run 'authsvc migrate'"):
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=postgres_url):
            pass


async def test_a_schema_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "state"):
        pass
    with sqlite3.connect(tmp_path / "state" / "authsvc.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ConfigurationError, match="newer"):
        async with running(tmp_path / "state"):
            pass
