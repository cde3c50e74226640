"""A key database that is no longer the file that was opened: nothing is read from it, or promised of it."""

import asyncio
import errno
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from authsvc import app as app_module
from authsvc.app import migrate, renew_epoch, serve
from authsvc.config import Config
from authsvc.errors import StoreUnavailableError
from authsvc.keys import generate_api_key
from authsvc.runtime import clock
from authsvc.runtime.environment import ConfigurationError
from authsvc.storage.bookmark import FILE as BOOKMARK
from authsvc.storage.database import Database
from authsvc.storage.sqlite import SqliteFile
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import project_service_pb2 as project_pb2
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.test_watch import BUSY, lose_the_last_change
from tests.authsvc.revocation.watching import issue, replica, revoke
from tests.postgres import PostgresServer
from tests.waiting import until

Code = grpc.StatusCode
Status = health_pb2.HealthCheckResponse
HEALTH = "grpc.health.v1.Health"
PROBED = ("", "authsvc.v1.KeyService", "authsvc.v1.ProjectService", "authsvc.v1.OperationsService")


def back_up(database: Path, copy: Path) -> None:
    """Copy it as the manual says."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def copy_wal(database: Path) -> None:
    """Have the file be up to date, as it is after a while."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint")


def side(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def unlink(database: Path, _: Path) -> None:
    for path in database.parent.glob(database.name + "*"):
        path.unlink()


def unlink_file(database: Path, _: Path) -> None:
    database.unlink()


def unlink_wal(database: Path, _: Path) -> None:
    side(database, "-wal").unlink()


def unlink_shm(database: Path, _: Path) -> None:
    side(database, "-shm").unlink()


def move(database: Path, _: Path) -> None:
    database.rename(database.with_name("moved.db"))


def move_directory(database: Path, _: Path) -> None:
    database.parent.rename(database.parent.with_name("elsewhere"))


def replace(database: Path, backup: Path) -> None:
    backup.rename(database)


def shift(source: Path, target: Path) -> None:
    source.rename(target)


def replace_wal(database: Path, _: Path) -> None:
    new = database.with_name("new-wal")
    shutil.copy(side(database, "-wal"), new)
    new.rename(side(database, "-wal"))


def overwrite(database: Path, backup: Path) -> None:
    """As `cp` does: it is the same file afterwards."""
    database.write_bytes(backup.read_bytes())


def overwrite_by_another(database: Path, _: Path) -> None:
    """By one that had more changes than this one ever."""
    other = database.with_name("other.db")
    with closing(sqlite3.connect(other)) as connection:
        connection.executescript("PRAGMA user_version = 1000; CREATE TABLE other (text TEXT)")
    database.write_bytes(other.read_bytes())
    other.unlink()


def overwrite_by_no_database(database: Path, _: Path) -> None:
    database.write_bytes(b"\0" * database.stat().st_size)


def truncate(database: Path, _: Path) -> None:
    database.write_bytes(b"")


def overwrite_wal(database: Path, _: Path) -> None:
    wal = side(database, "-wal")
    wal.write_bytes(b"\0" * wal.stat().st_size)


LOSSES = [
    unlink, unlink_file, unlink_wal, unlink_shm, move, move_directory, replace, replace_wal, overwrite,
    overwrite_by_another, overwrite_by_no_database, truncate, overwrite_wal,
]  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk" / "keys.db"


@asynccontextmanager
async def serving(tmp_path: Path, database: Path) -> AsyncIterator[Service]:
    async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=f"sqlite:///{database}") as service:
        yield service


async def refused(call: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def check_refused(call: Any) -> None:
    code, text = await refused(call)
    assert (code, "moved, removed or replaced" in text) == (Code.UNAVAILABLE, True), text


async def verdict(service: Service, api_key: str) -> int:
    answer = await service.keys.Validate(pb.ValidateRequest(api_key=api_key), metadata=service.token())
    found: int = answer.verdict
    return found


async def is_unavailable(service: Service, api_key: str) -> bool:
    try:
        await verdict(service, api_key)
    except grpc.aio.AioRpcError as error:
        return error.code() is Code.UNAVAILABLE
    return False


def health_of(service: Service) -> Any:
    return health_pb2_grpc.HealthStub(service.channel)


async def status(service: Service, name: str) -> int:
    answer = await health_of(service).Check(health_pb2.HealthCheckRequest(service=name))
    found: int = answer.status
    return found


def events(logs: list[Any], *names: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] in names]


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


@pytest.mark.parametrize("lose", LOSSES)
async def test_nothing_is_read_from_or_promised_of_what_the_next_start_would_not_find(
    tmp_path: Path, database: Path, lose: Callable[[Path, Path], None]
) -> None:
    """Every call is UNAVAILABLE, one line says why, health says so, and nothing is made in the file's place."""
    backup = tmp_path / "backup.db"
    with capture_logs() as logs:
        async with serving(tmp_path, database) as service:
            admin = service.token()
            first = (await issue(service)).api_key
            back_up(database, backup)
            second = (await revoke(service)).api_key
            copy_wal(database)
            await issue(service, "another")
            watch = health_of(service).Watch(health_pb2.HealthCheckRequest(service=PROBED[1]))
            assert (await watch.read()).status == Status.SERVING
            lose(database, backup)
            left = listing(database.parent.parent / "disk")
            await check_refused(issue(service, "other"))
            await check_refused(revoke(service))
            for api_key in (first, second):
                await check_refused(verdict(service, api_key))
            await check_refused(
                service.projects.GetProject(project_pb2.GetProjectRequest(project_id="demo"), metadata=admin)
            )
            await check_refused(service.operations.ListChanges(operations_pb2.ListChangesRequest(), metadata=admin))
            await check_refused(service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=admin))
            assert (await watch.read()).status == Status.NOT_SERVING
            assert [await status(service, name) for name in PROBED] == [Status.NOT_SERVING] * len(PROBED)
            assert await status(service, HEALTH) == Status.SERVING
            assert listing(database.parent.parent / "disk") == left
    [said] = events(logs, "database_lost", "leases_lost", "key_cache_lost", "call_failed")
    assert (said["event"], said["error"] in ("StoreLostError", "StoreOverwrittenError")) == ("database_lost", True)
    assert str(database) in said["reason"]


def move_back(database: Path) -> None:
    database.with_name("moved.db").rename(database)


def move_directory_back(database: Path) -> None:
    database.parent.with_name("elsewhere").rename(database.parent)


@pytest.mark.parametrize(("lose", "bring_back"), [(move, move_back), (move_directory, move_directory_back)])
async def test_once_the_file_is_back_all_goes_on(
    tmp_path: Path, database: Path, lose: Callable[[Path, Path], None], bring_back: Callable[[Path], None]
) -> None:
    with capture_logs() as logs:
        async with serving(tmp_path, database) as service:
            api_key = (await issue(service)).api_key
            watch = health_of(service).Watch(health_pb2.HealthCheckRequest(service=""))
            for _ in range(2):
                assert (await watch.read()).status == Status.SERVING
                lose(database, database)
                await check_refused(issue(service, "other"))
                assert (await watch.read()).status == Status.NOT_SERVING
                bring_back(database)
            assert (await watch.read()).status == Status.SERVING
            assert await verdict(service, api_key) == pb.VERDICT_ALLOWED
            assert (await revoke(service)).propagation.effective
            assert await verdict(service, api_key) == pb.VERDICT_INVALID_KEY
    assert [entry["event"] for entry in events(logs, "database_lost", "database_back")] == [
        "database_lost", "database_back", "database_lost", "database_back",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fault", [OSError(errno.EIO, "Input/output error"), sqlite3.OperationalError("disk I/O error")]
)
async def test_a_disk_that_fails_is_no_lost_database(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Nobody can tell then: it is an outage, and over as soon as the file can be read again."""

    def fail(*_: object) -> bytes:
        raise fault

    with capture_logs() as logs:
        async with serving(tmp_path, database) as service:
            api_key = (await issue(service)).api_key
            with monkeypatch.context() as disk:
                disk.setattr("authsvc.runtime.sqlite_files.os.pread", fail)
                assert await refused(issue(service, "other")) == (Code.UNAVAILABLE, "the database cannot answer now")
                await until("no key is read either", lambda: is_unavailable(service, api_key))
                await until("it is told", lambda: is_told(logs, "database_lost"))
            await issue(service, "other")
            assert await verdict(service, api_key) == pb.VERDICT_ALLOWED
            await until("it is told", lambda: is_told(logs, "database_back"))
    [said] = events(logs, "database_lost", "call_failed")
    assert (said["error"], said["reason"].startswith(f"{database} cannot be read: ")) == (type(fault).__name__, True)
    assert b'"is_spoilt":false' in (tmp_path / "state" / BOOKMARK).read_bytes()


async def is_told(logs: list[Any], event: str) -> bool:
    return bool(events(logs, event))


async def test_what_is_committed_to_a_file_that_goes_meanwhile_is_not_said_to_be(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in its place as the change began. Once it is back, the change is there: it may have been made."""
    is_armed = False
    now = clock.now

    def lose_and_tell() -> datetime:  # what the store asks for after it has begun to write
        if is_armed and database.exists():
            move(database, database)
        return now()

    monkeypatch.setattr(app_module, "now", lose_and_tell)
    async with serving(tmp_path, database) as service:
        first = (await issue(service)).api_key
        is_armed = True
        await check_refused(revoke(service))
        is_armed = False
        move_back(database)
        await until("it is back", lambda: is_serving(service))
        assert await verdict(service, first) == pb.VERDICT_INVALID_KEY


async def is_serving(service: Service) -> bool:
    return bool(await status(service, "") == Status.SERVING)


async def test_no_connection_makes_a_file_in_the_place_of_one_that_went_meanwhile(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the connection; it would be empty, and the next start would find it."""
    async with serving(tmp_path, database):
        opened = Database(f"sqlite:///{database}")
        async with opened.statement():
            pass
        await opened.engine.dispose()
        monkeypatch.setattr(SqliteFile, "check", lambda _: None)
        move(database, database)
        with pytest.raises(StoreUnavailableError):
            async with opened.statement():
                pass
        assert not any(path.name == database.name for path in database.parent.iterdir())
        move_back(database)
        await opened.close()


async def test_a_link_that_leads_elsewhere_is_another_file(tmp_path: Path, database: Path) -> None:
    link, other = tmp_path / "link.db", tmp_path / "other.db"
    link.symlink_to(database)
    async with serving(tmp_path, link) as service:
        await issue(service)
        back_up(database, other)
        link.unlink()
        link.symlink_to(other)
        await check_refused(revoke(service))
        link.unlink()
        link.symlink_to(database)
        await revoke(service)


async def test_a_busy_service_does_not_go_on_from_memory(tmp_path: Path, database: Path) -> None:
    """Whose lease is live, and whose database it need not ask."""
    async with serving(tmp_path, database) as service:
        api_key = (await issue(service)).api_key

        async def is_indexed() -> bool:
            ask = pb.BatchValidateRequest(requests=[pb.ValidateRequest(api_key=generate_api_key().reveal())] * BUSY)
            await service.keys.BatchValidate(ask, metadata=service.token())
            holders = await service.operations.ListHolders(
                operations_pb2.ListHoldersRequest(), metadata=service.token()
            )
            await verdict(service, api_key)
            return bool(holders.holders)

        await until("the index has a lease", is_indexed)
        unlink(database, database)
        await check_refused(issue(service, "other"))  # whoever looks first, all know
        await check_refused(verdict(service, api_key))


async def test_a_restore_by_sqlite_itself_is_the_same_database(tmp_path: Path, database: Path) -> None:
    """`sqlite3 .restore` writes as others do: what was lost is told, and a new epoch is all that is needed."""
    backup = tmp_path / "backup.db"
    with capture_logs() as logs:
        async with serving(tmp_path, database) as service:
            first = (await issue(service)).api_key
            back_up(database, backup)
            await revoke(service)
            copy_wal(database)
            await issue(service, "another")
            back_up(backup, database)
            copy_wal(database)
            await until("it is told", lambda: is_told(logs, "revisions_lost"))
            assert await verdict(service, first) == pb.VERDICT_ALLOWED
            assert not (await revoke(service, wait_seconds=0)).propagation.effective
            copy_wal(database)
            await renew_epoch(config(tmp_path, database))

            async def is_over() -> bool:
                epoch = (
                    await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
                ).epoch
                revoked = await revoke(service, wait_seconds=0)
                return bool(epoch) and [it.name for it in revoked.propagation.pending] == [STAND_IN]

            await until("there is a new epoch", is_over)
    assert not events(logs, "database_lost")
    [said] = events(logs, "revisions_lost")
    assert (said["after"], said["known"], "renew-epoch" in said["remedy"]) == (1, 3, True)


STAND_IN = "whoever watched before the new epoch"


def config(tmp_path: Path, database: Path) -> Config:
    variables = {"AUTHSVC_DATABASE_URL": f"sqlite:///{database}", "AUTHSVC_STATE_DIR": str(tmp_path / "state")}
    return Config.from_environment(variables | {"AUTHSVC_LISTEN": "127.0.0.1:0"})


async def test_a_database_that_was_there_is_not_made_anew_by_any_command(tmp_path: Path, database: Path) -> None:
    """An empty one would refuse every key, and clients throw away what is refused. Told not to look for it, it is."""
    async with serving(tmp_path, database) as service:
        await issue(service)
        unlink(database, database)
    for command in (
        lambda: serve(config(tmp_path, database), asyncio.Event(), lambda _: None),
        lambda: migrate(config(tmp_path, database)),
        lambda: renew_epoch(config(tmp_path, database)),
    ):
        with pytest.raises(ConfigurationError, match=rf"{database} is missing, which had 1 changes: .*{BOOKMARK}"):
            await command()
        assert listing(database.parent) == []
    (tmp_path / "state" / BOOKMARK).unlink()
    async with serving(tmp_path, database) as service:
        await issue(service)


async def test_a_wal_without_its_database_keeps_the_service_from_making_one(tmp_path: Path, database: Path) -> None:
    """SQLite would delete it."""
    side(database, "-wal").write_bytes(b"what was committed last")
    with pytest.raises(ConfigurationError, match=r"keys\.db is missing, and .*keys\.db-wal has what was stored"):
        async with serving(tmp_path, database):
            pass
    assert side(database, "-wal").exists()


async def test_a_backup_that_took_the_files_place_is_whole_at_the_next_start_and_known_for_one(
    tmp_path: Path, database: Path
) -> None:
    """Though the WAL of the old file lay beside it; and the old file has all that it had."""
    backup, old = tmp_path / "backup.db", tmp_path / "old.db"
    async with serving(tmp_path, database) as service:
        await issue(service)
        back_up(database, backup)
        await revoke(service)
        copy_wal(database)
        await issue(service, "another")

        async def is_noted() -> bool:
            return b'"revision":3' in (tmp_path / "state" / BOOKMARK).read_bytes()

        await until("it is noted", is_noted)
        shift(database, old)
        shift(backup, database)
        await check_refused(revoke(service))
    with capture_logs() as logs:
        async with serving(tmp_path, database) as service:
            assert not (await issue(service, "yet-another", wait_seconds=0)).propagation.effective
    [said] = events(logs, "revisions_lost")
    assert (said["after"], said["known"], "renew-epoch" in said["remedy"]) == (1, 3, True)
    for path, revision in ((database, 2), (old, 3)):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT revision FROM revision_counter").fetchall() == [(revision,)]


async def test_a_database_that_was_overwritten_is_not_served_from_before_it_is_put_right(
    tmp_path: Path, database: Path
) -> None:
    """As the service ends, SQLite copies into it what it had for the old one."""
    backup = tmp_path / "backup.db"
    async with serving(tmp_path, database) as service:
        first = (await issue(service)).api_key
        back_up(database, backup)
        await revoke(service)
        copy_wal(database)
        await issue(service, "another")
        overwrite(database, backup)
        await check_refused(revoke(service))

        async def is_noted() -> bool:
            return b'"is_spoilt":true' in (tmp_path / "state" / BOOKMARK).read_bytes()

        await until("it is noted", is_noted)
    with pytest.raises(ConfigurationError, match=rf"was overwritten while .*{BOOKMARK}"):
        async with serving(tmp_path, database):
            pass
    overwrite(database, backup)
    (tmp_path / "state" / BOOKMARK).unlink()
    async with serving(tmp_path, database) as service:
        assert await verdict(service, first) == pb.VERDICT_ALLOWED


async def test_a_history_that_went_back_and_on_is_known_for_another_one(tmp_path: Path, database: Path) -> None:
    """At the next start, and whatever its revision is by then."""
    backup, bookmark = tmp_path / "backup.db", tmp_path / "state" / BOOKMARK
    async with serving(tmp_path, database) as service:
        await issue(service)
        back_up(database, backup)
        await issue(service, "lost")

        async def is_noted() -> bool:
            return b'"revision":2' in bookmark.read_bytes()

        await until("it is noted", is_noted)
    seen = bookmark.read_bytes()
    shift(backup, database)
    shift(bookmark, tmp_path / "aside")
    async with serving(tmp_path, database) as service:
        for name in ("second", "third"):
            assert (await issue(service, name)).propagation.effective
    bookmark.write_bytes(seen)
    for _ in range(2):
        with capture_logs() as logs:
            async with serving(tmp_path, database) as service:
                assert not (await issue(service, f"more-{_}", wait_seconds=0)).propagation.effective
        assert [(it["after"], it["known"]) for it in events(logs, "revisions_lost")] == [(1, 2)]


async def test_a_change_that_gets_a_number_that_was_given_is_not_said_to_hold(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders seem to have confirmed it: they had another one of that number."""
    for name in ("demo", "other"):
        await issue(service, name)

    async def has_seen_both() -> bool:
        return b'"revision":2' in (service.state_dir / BOOKMARK).read_bytes()

    await until("both are seen", has_seen_both)
    with capture_logs() as logs:
        await asyncio.to_thread(lose_the_last_change, service)
        assert not (await issue(service, "another", wait_seconds=0)).propagation.effective
    assert len(events(logs, "revisions_lost")) == 1


async def test_a_postgresql_database_that_is_made_anew_is_unavailable_until_it_is_migrated(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """Dropped under the service's connections: an outage, not a fault of the service; and then another epoch."""
    name = "anew"
    url = postgres_server.url(name)
    postgres_server.sql(f"CREATE DATABASE {name} TEMPLATE migrated")
    try:
        with capture_logs() as logs:
            async with replica(tmp_path / "state", url) as service:
                api_key = (await issue(service)).api_key
                postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")
                await until("it does not answer", lambda: is_unavailable(service, api_key))
                postgres_server.sql(f"CREATE DATABASE {name}")
                for _ in range(3):  # connections of the pool that died fail once each
                    assert (await refused(issue(service, "other")))[0] is Code.UNAVAILABLE
                    assert await is_unavailable(service, api_key)
                assert await status(service, "") == Status.NOT_SERVING
                await migrate(Config.from_environment({"AUTHSVC_DATABASE_URL": url}))
                await until("it is back", lambda: is_serving(service))
                assert await verdict(service, api_key) == pb.VERDICT_INVALID_KEY
                await issue(service)
        assert [it["event"] for it in events(logs, "database_lost", "database_back", "call_failed")] == [
            "database_lost", "database_back",
        ]  # fmt: skip
    finally:
        postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


async def test_health_tells_of_an_outage_of_postgresql_and_of_its_end(
    tmp_path: Path, private_postgres: PostgresServer
) -> None:
    async with replica(tmp_path / "state", private_postgres.url("migrated")) as service:
        watch = health_of(service).Watch(health_pb2.HealthCheckRequest(service=PROBED[1]))
        assert (await watch.read()).status == Status.SERVING
        await asyncio.to_thread(private_postgres.stop)
        assert (await watch.read()).status == Status.NOT_SERVING
        assert await status(service, HEALTH) == Status.SERVING
        await asyncio.to_thread(private_postgres.start)
        assert (await watch.read()).status == Status.SERVING
        assert await status(service, "") == Status.SERVING
