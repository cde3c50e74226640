"""Projects, keys and the log of changes in SQL: SQLite or PostgreSQL. The only SQL of the key service.

`service` calls `KeyStore`; `app` and the CLI open it. The database holds the
invariants: one active key a project, unique digests, gap-free revisions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from authsvc.client.environment import ConfigurationError
from authsvc.client.raw_key import Digest
from authsvc.errors import AlreadyExistsError, NotFoundError, StoreUnavailableError
from authsvc.keys import KeyId, ProjectId

Revision = NewType("Revision", int)
"""How many mutations were committed before and with this one: gap-free, and visible in order."""

_BUSY_TIMEOUT_SECONDS = 5
_POOL_TIMEOUT_SECONDS = 5
_COMMAND_TIMEOUT_SECONDS = 5
SCHEMA_VERSION = "0001"
"""The newest revision under `migrations/versions`, which these tables are at; a test compares."""

_MIGRATION_LOCK = 0x6474_6175  # any number that nothing else locks in this database


class _Instant(sa.TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite has no zones, so there it is stored without."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.replace(tzinfo=None) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and dialect.name == "sqlite" else value


# Written for queries; `migrations` makes the tables, with constraints and indexes. A test compares the two.
_metadata = sa.MetaData()
_counter = sa.Table(
    "revision_counter",
    _metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
_projects = sa.Table(
    "projects",
    _metadata,
    sa.Column("project_id", sa.String(63), primary_key=True),
    sa.Column("origins", sa.JSON, nullable=False),
    sa.Column("create_time", _Instant, nullable=False),
)
_keys = sa.Table(
    "keys",
    _metadata,
    sa.Column("key_id", sa.String(20), primary_key=True),
    sa.Column("project_id", sa.String(63), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("create_revision", sa.BigInteger, nullable=False),
    sa.Column("create_time", _Instant, nullable=False),
    sa.Column("revoke_time", _Instant),
)
_changes = sa.Table(
    "changes",
    _metadata,
    sa.Column("revision", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("project_id", sa.String(63), nullable=False),
    sa.Column("voided_digests", sa.JSON, nullable=False),
    sa.Column("caller", sa.String(128), nullable=False),
    sa.Column("create_time", _Instant, nullable=False),
)
_active = _keys.c.revoke_time.is_(None)

# One statement, so that revision, key and origins are of one snapshot. The join starts at the counter: there is
# always exactly one row.
_LOOKUP = sa.select(
    _counter.c.revision, _keys.c.key_id, _keys.c.project_id, _keys.c.revoke_time, _projects.c.origins
).select_from(
    _counter.outerjoin(_keys, _keys.c.digest == sa.bindparam("digest")).outerjoin(
        _projects, _projects.c.project_id == _keys.c.project_id
    )
)


class ChangeKind(StrEnum):
    """What a mutation did."""

    ISSUE = "issue"
    REVOKE = "revoke"
    SET_ORIGINS = "set_origins"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of an API key."""

    key_id: KeyId
    project_id: ProjectId
    create_revision: Revision
    create_time: datetime
    revoke_time: datetime | None


@dataclass(frozen=True, slots=True)
class Project:
    """A project with its key in use."""

    project_id: ProjectId
    origins: tuple[str, ...]
    create_time: datetime
    active_key: Key | None


@dataclass(frozen=True, slots=True)
class ActiveKey:
    """Whose key a digest is, and which origins it may be used from."""

    key_id: KeyId
    project_id: ProjectId
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key about to be stored."""

    key_id: KeyId
    digest: Digest


@dataclass(frozen=True, slots=True)
class Revoked:
    """The outcome of `KeyStore.revoke`; `next_key` is None when the key had been revoked before."""

    key: Key
    next_key: Key | None
    revision: Revision


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the audit trail: one mutation, and the digests whose cached verdicts it voids."""

    revision: Revision
    kind: ChangeKind
    project_id: ProjectId
    voided_digests: tuple[Digest, ...]
    caller: str
    create_time: datetime


def open_engine(url: str) -> AsyncEngine:
    """Return an engine for `sqlite:///FILE` or `postgresql://…`; nothing is connected yet.

    Raises ConfigurationError for another kind of database.
    """
    try:
        parsed = sa.make_url(url)
        urlsplit(url)  # finds broken brackets, which the driver would at each connection
    except (exc.ArgumentError, ValueError):  # the latter also for a port
        raise ConfigurationError("AUTHSVC_DATABASE_URL: not a database URL") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        engine = create_async_engine(
            parsed.set(drivername="sqlite+aiosqlite"),
            hide_parameters=True,
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    if backend == "postgresql":
        return create_async_engine(
            parsed.set(drivername="postgresql+asyncpg"),
            hide_parameters=True,
            pool_size=10,
            pool_timeout=_POOL_TIMEOUT_SECONDS,
            connect_args={
                "timeout": _COMMAND_TIMEOUT_SECONDS,
                "command_timeout": _COMMAND_TIMEOUT_SECONDS,
                "server_settings": {"application_name": "authsvc", "synchronous_commit": "on"},
            },
        )
    raise ConfigurationError("AUTHSVC_DATABASE_URL: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read: a transaction that reads first and then writes would
    # fail, or write what it read too long ago.
    if mode := connection.get_execution_options().get("sqlite_begin", "DEFERRED"):
        connection.exec_driver_sql(f"BEGIN {mode}")


class KeyStore:
    """All that is stored of projects and keys.

    Every method raises StoreUnavailableError while the database cannot answer. A mutation that raises it was not
    committed, except where the database's answer to the commit itself was lost.
    """

    def __init__(self, engine: AsyncEngine, now: Callable[[], datetime]) -> None:
        """`now` gives aware UTC instants. The engine is the store's from here on."""
        self._engine = engine
        # A single statement needs no transaction: three round trips to the database become one.
        self._statements = (
            engine.execution_options(sqlite_begin=None)
            if engine.dialect.name == "sqlite"
            else engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._mutations = engine.execution_options(sqlite_begin="IMMEDIATE")
        self._now = now
        # Mutations wait for each other in the database anyway: SQLite's writers poll, and PostgreSQL's hold a
        # connection each, which validations then lack. Within a process they queue here instead, in order.
        self._turn = asyncio.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether the schema is migrated at start."""
        return self._engine.dialect.name == "sqlite"

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def schema_version(self) -> str | None:
        """Return the Alembic revision that the database is at; None for an empty database."""
        async with self._reading() as connection:
            if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table("alembic_version")):
                return None
            return (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()

    async def migrate(self, upgrade: Callable[[sa.Connection], None]) -> None:
        """Run `upgrade` in one transaction that no other process's migration overlaps."""
        async with _translated(), self._mutations.connect() as connection, connection.begin():
            if not self.is_sqlite:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            await connection.run_sync(upgrade)

    async def lookup(self, digest: Digest) -> tuple[Revision, ActiveKey | None]:
        """Return the active key with this digest, if there is one, and the revision that this was read at."""
        for retry in (True, False):
            try:
                async with _translated(), self._statements.connect() as connection:
                    row = (await connection.execute(_LOOKUP, {"digest": digest})).one()
                break
            except StoreUnavailableError as error:
                # The pool may hold connections that the database closed long ago; it has dropped them all by now.
                if not (retry and getattr(error.__cause__, "connection_invalidated", False)):
                    raise
        if row.key_id is None or row.revoke_time is not None:
            return Revision(row.revision), None
        return Revision(row.revision), ActiveKey(row.key_id, row.project_id, tuple(row.origins))

    async def issue(
        self, project_id: ProjectId, origins: Sequence[str], key: NewKey, caller: str
    ) -> tuple[Key, tuple[str, ...], Revision]:
        """Store the project's active key, and the project with its (normalised) origins if it is new.

        Raises AlreadyExistsError when the project has an active key.
        """
        async with self._mutating() as (connection, revision, now):
            project = await self._project(connection, project_id)
            if project is None:
                values = {"project_id": project_id, "origins": list(origins), "create_time": now}
                await connection.execute(_projects.insert().values(values))
            elif project.active_key is not None:
                raise AlreadyExistsError(f"project {project_id!r} has an active key; revoke it to get a new one")
            elif origins:
                await connection.execute(_update_origins(project_id, origins))
            else:
                origins = project.origins
            stored = await self._insert_key(connection, project_id, key, revision, now)
            # The new key's digest is void too: it may have been probed, and be cached as unknown, before it existed.
            await self._record(connection, revision, ChangeKind.ISSUE, project_id, [key.digest], caller, now)
        return stored, tuple(origins), revision

    async def revoke(self, project_id: ProjectId, key_id: str | None, next_key: NewKey, caller: str) -> Revoked:
        """Revoke the named key, or else the active one, and store the project's next key.

        A key that is revoked already changes nothing. Raises NotFoundError for an unknown project or key.
        """
        which = _active if key_id is None else _keys.c.key_id == key_id
        query = sa.select(_keys).where(_keys.c.project_id == project_id, which)
        async with self._mutating() as (connection, revision, now):
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                what = "active key" if key_id is None else f"key {key_id[:40]!r}"
                raise NotFoundError(f"no {what} in a project {project_id!r}")
            if row.revoke_time is not None:
                await connection.rollback()
                return Revoked(_key(row), None, Revision(revision - 1))
            await connection.execute(_keys.update().where(_keys.c.key_id == row.key_id).values(revoke_time=now))
            stored = await self._insert_key(connection, project_id, next_key, revision, now)
            voided = [Digest(row.digest), next_key.digest]
            await self._record(connection, revision, ChangeKind.REVOKE, project_id, voided, caller, now)
        return Revoked(_key(row, revoke_time=now), stored, revision)

    async def set_origins(self, project_id: ProjectId, origins: Sequence[str], caller: str) -> Revision:
        """Replace the project's origins by these (normalised) ones. Raises NotFoundError for an unknown project."""
        query = sa.select(_keys.c.digest).where(_keys.c.project_id == project_id, _active)
        async with self._mutating() as (connection, revision, now):
            if (await connection.execute(_update_origins(project_id, origins))).rowcount == 0:
                raise NotFoundError(f"no project {project_id!r}")
            voided = [Digest(digest) for digest in (await connection.execute(query)).scalars()]
            await self._record(connection, revision, ChangeKind.SET_ORIGINS, project_id, voided, caller, now)
        return revision

    async def project(self, project_id: ProjectId) -> Project:
        """Return the project. Raises NotFoundError."""
        async with self._reading() as connection:
            project = await self._project(connection, project_id)
        if project is None:
            raise NotFoundError(f"no project {project_id!r}")
        return project

    async def projects(self, *, after: str, limit: int) -> list[Project]:
        """Return at most `limit` projects by id, from the first one whose id is greater than `after`."""
        query = _SELECT_PROJECTS.where(_projects.c.project_id > after).order_by(_projects.c.project_id).limit(limit)
        async with self._reading() as connection:
            return [_project(row) for row in await connection.execute(query)]

    async def keys(self, project_id: ProjectId, *, before: Revision | None, limit: int) -> list[Key]:
        """Return at most `limit` of a project's keys, newest first, issued before the revision if one is given.

        Raises NotFoundError for an unknown project.
        """
        query = sa.select(_keys).where(_keys.c.project_id == project_id)
        if before is not None:
            query = query.where(_keys.c.create_revision < before)
        async with self._reading() as connection:
            if await self._project(connection, project_id) is None:
                raise NotFoundError(f"no project {project_id!r}")
            rows = await connection.execute(query.order_by(_keys.c.create_revision.desc()).limit(limit))
            return [_key(row) for row in rows]

    async def changes(self, *, after: Revision, limit: int) -> list[Change]:
        """Return at most `limit` changes in order, from the first one after the revision."""
        query = sa.select(_changes).where(_changes.c.revision > after).order_by(_changes.c.revision).limit(limit)
        async with self._reading() as connection:
            return [_change(row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        async with _translated(), self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def _mutating(self) -> AsyncIterator[tuple[AsyncConnection, Revision, datetime]]:
        """Begin a mutation by taking the next revision; commit at the end, or roll back when the body raises.

        The counter's row lock puts mutations in one order: what the body reads is all that came before, and
        nothing comes between. A body that rolls back itself has changed nothing.
        """
        bump = _counter.update().values(revision=_counter.c.revision + 1).returning(_counter.c.revision)
        async with self._turn, _translated(), self._mutations.connect() as connection:
            revision = (await connection.execute(bump)).scalar_one()
            yield connection, Revision(revision), self._now()
            await connection.commit()

    async def _project(self, connection: AsyncConnection, project_id: ProjectId) -> Project | None:
        rows = await connection.execute(_SELECT_PROJECTS.where(_projects.c.project_id == project_id))
        row = rows.one_or_none()
        return None if row is None else _project(row)

    async def _insert_key(
        self, connection: AsyncConnection, project_id: ProjectId, key: NewKey, revision: Revision, now: datetime
    ) -> Key:
        stored = Key(key.key_id, project_id, revision, now, None)
        await connection.execute(
            _keys.insert().values(
                key_id=key.key_id,
                project_id=project_id,
                digest=key.digest,
                create_revision=revision,
                create_time=now,
            )
        )
        return stored

    async def _record(
        self,
        connection: AsyncConnection,
        revision: Revision,
        kind: ChangeKind,
        project_id: ProjectId,
        voided_digests: Sequence[Digest],
        caller: str,
        now: datetime,
    ) -> None:
        await connection.execute(
            _changes.insert().values(
                revision=revision,
                kind=kind.value,
                project_id=project_id,
                voided_digests=[digest.hex() for digest in voided_digests],
                caller=caller,
                create_time=now,
            )
        )


_SELECT_PROJECTS = sa.select(
    _projects, _keys.c.key_id, _keys.c.create_revision, _keys.c.create_time.label("key_create_time")
).select_from(_projects.outerjoin(_keys, sa.and_(_keys.c.project_id == _projects.c.project_id, _active)))


def _update_origins(project_id: ProjectId, origins: Sequence[str]) -> sa.Update:
    return _projects.update().where(_projects.c.project_id == project_id).values(origins=list(origins))


def _key(row: sa.Row[Any], revoke_time: datetime | None = None) -> Key:
    return Key(row.key_id, row.project_id, row.create_revision, row.create_time, revoke_time or row.revoke_time)


def _project(row: sa.Row[Any]) -> Project:
    active = None
    if row.key_id is not None:
        active = Key(row.key_id, row.project_id, row.create_revision, row.key_create_time, None)
    return Project(row.project_id, tuple(row.origins), row.create_time, active)


def _change(row: sa.Row[Any]) -> Change:
    voided = tuple(Digest(bytes.fromhex(digest)) for digest in row.voided_digests)
    return Change(row.revision, ChangeKind(row.kind), row.project_id, voided, row.caller, row.create_time)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn what drivers raise while the database is out of reach into StoreUnavailableError."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, OSError, TimeoutError) as error:
        raise StoreUnavailableError("the database cannot answer now") from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailableError("the database cannot answer now") from error
        raise
