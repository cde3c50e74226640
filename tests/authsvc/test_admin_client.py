"""The admin client against a real service: typed answers, refusals in the service's words, faults as one error."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import PAGE_SIZE, AdminClient, OriginCheck, RefusedError
from authsvc.client.channel import TokenFile, TokenSource
from authsvc.runtime.environment import Address, Secret
from tests.authsvc.conftest import Service, running


@asynccontextmanager
async def connected(address: Address, state_dir: Path) -> AsyncIterator[AdminClient]:
    client = AdminClient(address, TokenFile(state_dir / "admin-token"))
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[AdminClient]:
    async with connected(service.address, service.state_dir) as client:
        yield client


async def test_a_key_is_issued_listed_and_revoked_in_somebodys_name(admin: AdminClient) -> None:
    issued = await admin.issue("demo", ["Shop.Example"], caller="Ann")
    project = await admin.project("demo")
    assert ([*project.origins], project.active_key) == (["shop.example"], issued.key)
    assert (issued.key.prefix, issued.key.creator, issued.key.HasField("revoke_time")) == ("dt_", "Ann", False)
    revoked = await admin.revoke("demo", issued.key.key_id, caller="Søren Kierkegård 丁")
    assert not revoked.already_revoked
    assert len({issued.api_key, revoked.api_key, ""}) == 3
    assert revoked.revoked_key.HasField("revoke_time")
    assert revoked.propagation.effective
    assert revoked.propagation.effective_by.ToDatetime(UTC) <= datetime.now(UTC)
    again = await admin.revoke("demo", issued.key.key_id, caller="Bob")
    assert (again.already_revoked, again.api_key, again.revoked_key) == (True, "", revoked.revoked_key)
    keys, more = await admin.keys("demo")
    assert [(key.key_id, key.creator) for key in keys] == [
        (revoked.key.key_id, "Søren Kierkegård 丁"),
        (issued.key.key_id, "Ann"),
    ]
    assert more == ""
    for already_set in (False, True):
        stored = await admin.set_origins("demo", ["b.example", "B.example"], caller="Ann")
        assert ([*stored.origins], stored.already_set) == (["b.example"], already_set)
    changes, older = await admin.changes()
    assert older == 0
    assert [(change.revision, change.kind, change.caller) for change in changes] == [
        (3, "set_origins", "Ann"),
        (2, "revoke", "Søren Kierkegård 丁"),
        (1, "issue", "Ann"),
    ]


async def test_what_the_service_refuses_is_told_in_its_words(admin: AdminClient) -> None:
    await admin.issue("demo", [], caller="Ann")
    for call, status, text in (
        (admin.issue("demo", [], caller="Ann"), "ALREADY_EXISTS", "has an active key"),
        (admin.issue("Demo", [], caller="Ann"), "INVALID_ARGUMENT", "expected 1 to 63"),
        (admin.set_origins("demo", ["*"], caller="Ann"), "INVALID_ARGUMENT", "wildcard"),
        (admin.project("other"), "NOT_FOUND", "no project 'other'"),
        (admin.revoke("demo", "key_0", caller="Ann"), "NOT_FOUND", "key_0"),
        (admin.projects(query="\0"), "INVALID_ARGUMENT", "U+0000"),
        (admin.check_origins(["a.example"] * 101), "INVALID_ARGUMENT", "101 origin entries"),
        (admin.check_origins([], ["x"] * 1001), "INVALID_ARGUMENT", "1001 origins"),
    ):
        with pytest.raises(RefusedError) as refused:
            await call
        assert refused.value.status == status
        assert text in str(refused.value)


async def test_an_origin_list_is_checked_without_being_saved(admin: AdminClient) -> None:
    await admin.issue("demo", [], caller="Ann")
    check = await admin.check_origins(
        ["Shop.Example.", "https://x.example/path", "*.shop.example", ""],
        ["https://shop.example", "https://a.shop.example:8443", "https://x.example", "null", ""],
    )
    assert [(entry.entry, bool(entry.error)) for entry in check.entries] == [
        ("shop.example", False),
        ("", True),
        ("*.shop.example", False),
        ("", True),
    ]
    assert check.entries[1].error == "a path is not part of an origin"
    assert check.origins == [
        OriginCheck(admitted=True, entry="shop.example"),
        OriginCheck(admitted=True, entry="*.shop.example"),
        OriginCheck(admitted=False, entry=""),
        OriginCheck(admitted=False, entry=""),
        OriginCheck(admitted=False, entry=""),
    ]
    everything = await admin.check_origins([], ["null"])
    assert everything.origins == [OriginCheck(admitted=True, entry="")]
    nothing_valid = await admin.check_origins(["*"], ["https://a.example"])
    assert not nothing_valid.origins[0].admitted
    assert (await admin.project("demo")).origins == []


async def test_a_public_suffix_is_named_and_admitted_only_when_allowed(admin: AdminClient) -> None:
    await admin.issue("demo", [], caller="Ann")
    [refused] = (await admin.check_origins(["*.vercel.app"])).entries
    assert (refused.entry, refused.public_suffix, bool(refused.error)) == ("", "vercel.app", True)
    [allowed] = (await admin.check_origins(["*.vercel.app"], allow_public_suffix=True)).entries
    assert (allowed.entry, allowed.public_suffix, allowed.error) == ("*.vercel.app", "vercel.app", "")
    with pytest.raises(RefusedError, match="public suffix"):
        await admin.set_origins("demo", ["*.vercel.app"], caller="Ann")
    assert (await admin.project("demo")).origins == []
    await admin.set_origins("demo", ["*.vercel.app"], allow_public_suffix=True, caller="Ann")
    assert (await admin.project("demo")).origins == ["*.vercel.app"]


async def test_projects_are_found_by_a_part_of_their_names_a_page_at_a_time(admin: AdminClient) -> None:
    for number in range(PAGE_SIZE + 2):
        await admin.issue(f"shop-{number:02}", [], caller="Ann")
    await admin.issue("other", [], caller="Ann")
    page, more = await admin.projects(query="SHOP")
    rest, end = await admin.projects(query="SHOP", page_token=more)
    assert [project.project_id for project in (*page, *rest)] == [f"shop-{n:02}" for n in range(PAGE_SIZE + 2)]
    assert end == ""
    assert [project.project_id for project in (await admin.projects(query="r"))[0]] == ["other"]
    assert (await admin.projects(query="%"))[0] == []
    assert [change.project_id for change in (await admin.changes(project_id="other"))[0]] == ["other"]


@pytest.mark.parametrize(("count", "pages"), [(PAGE_SIZE - 1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2)])
async def test_changes_are_read_a_page_at_a_time_and_the_last_one_is_known(
    admin: AdminClient, count: int, pages: int
) -> None:
    for number in range(count):
        await admin.issue(f"shop-{number:02}", [], caller="Ann")
    revisions, before, read = [], 0, 0
    while read == 0 or before:
        changes, before = await admin.changes(before_revision=before)
        revisions += [change.revision for change in changes]
        read += 1
    assert (revisions, read) == (list(range(count, 0, -1)), pages)


async def test_a_service_out_of_reach_is_found_again_and_its_new_token_too(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", probe.getsockname()[1])
    async with connected(address, tmp_path) as admin:
        with pytest.raises(KeyServiceUnavailableError, match="does not exist"):
            await admin.projects()
        async with running(tmp_path, AUTHSVC_LISTEN=str(address)):
            assert await admin.projects() == ([], "")
        with pytest.raises(KeyServiceUnavailableError, match="refuses connections"):
            await admin.projects()
        (tmp_path / "admin-token").unlink()
        async with running(tmp_path, AUTHSVC_LISTEN=str(address)):
            assert await admin.projects() == ([], "")


class ReplacedToken(TokenSource):
    """A token that the service has replaced: what was read before is worth nothing, what is read anew is."""

    def __init__(self, token: str) -> None:
        self._stale, self._token = "stale", token

    def read(self) -> Secret:
        return Secret(self._stale or self._token)

    def forget(self) -> None:
        self._stale = ""


async def test_a_token_that_was_replaced_is_read_again_within_the_call(service: Service) -> None:
    admin = AdminClient(service.address, ReplacedToken((service.state_dir / "admin-token").read_text().strip()))
    assert await admin.projects() == ([], "")
    await admin.close()


@pytest.mark.parametrize("role", ["bridge", ""])
async def test_another_token_than_the_admins_is_a_fault_of_ours(service: Service, role: str) -> None:
    token = (service.state_dir / f"{role}-token").read_text().strip() if role else "wrong"
    admin = AdminClient(service.address, TokenSource(Secret(token)))
    with pytest.raises(KeyServiceUnavailableError, match="does not accept our admin token"):
        await admin.projects()
    await admin.close()
