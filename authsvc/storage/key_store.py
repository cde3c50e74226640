"""Projects, keys and changes in SQL. The database holds the invariants: one active key a project, unique digests."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.client.api_key import Digest
from authsvc.errors import AlreadyExistsError, NotFoundError, StoreUnavailableError
from authsvc.keys import KeyId, ProjectId
from authsvc.origins import EVERY_ORIGIN, OriginList
from authsvc.storage.database import Database
from authsvc.storage.records import ActiveKey, Change, ChangeKind, Key, Mutated, NewKey, Project, Revision, Snapshot
from authsvc.storage.tables import COUNTER
from authsvc.storage.tables import changes as _changes
from authsvc.storage.tables import keys as _keys
from authsvc.storage.tables import projects as _projects

SCHEMA_VERSION = "0004"
"""The newest revision under `migrations/versions`, which these tables are at; a test compares."""

_active = _keys.c.revoke_time.is_(None)

# Rule 4: one statement, so that revision, keys and origins are of one snapshot. The join starts at the counter: there
# is always a row.
_LOOKUP = """
SELECT keys.digest, revision_counter.epoch, revision_counter.revision, keys.key_id, keys.project_id, projects.origins
FROM revision_counter
LEFT JOIN keys ON keys.digest IN {} AND keys.revoke_time IS NULL
LEFT JOIN projects ON projects.project_id = keys.project_id
"""


class KeyStore:
    """All that is stored of projects and keys.

    Methods raise StoreUnavailableError while the database cannot answer: then nothing was committed, unless the
    response to the commit itself was lost.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        """`now` gives aware UTC instants; the database stays the caller's to close."""
        self.database = database
        self._lookup = database.prepared_reads(_LOOKUP)
        self._now = now
        # Mutations wait for each other at the counter's row, holding a connection each, which validations and
        # keep-alives then lack. Within a process they queue here instead.
        self._turn = asyncio.Lock()

    async def lookup(self, digests: Sequence[Digest]) -> Snapshot:
        """Return which of these digests, at least one, are active keys."""
        rows = await self._lookup.rows(digests)
        keys = {}
        for digest in digests:
            if (row := rows.get(digest)) is not None:
                *_, key_id, project_id, origins = row
                keys[digest] = ActiveKey(key_id, project_id, _origin_list(origins))
        if not rows:
            raise StoreUnavailableError("revision_counter is empty")
        _, epoch, revision, *_ = next(iter(rows.values()))
        return Snapshot(epoch, revision, keys)

    async def issue(self, project_id: ProjectId, origins: Sequence[str], key: NewKey, caller: str) -> Mutated:
        """Store a project's key, and the project with its (normalised) origins if new; raise AlreadyExistsError."""
        async with self._mutating(project_id, caller) as mutation:
            project = await _find_project(mutation.connection, project_id)
            if project is None:
                values = {"project_id": project_id, "origins": list(origins), "create_time": mutation.now}
                await mutation.connection.execute(_projects.insert().values(values))
            elif project.active_key is not None:
                raise AlreadyExistsError(f"project {project_id!r} has an active key; revoke it to get a new one")
            elif origins:
                await mutation.update_origins(origins)
            else:
                origins = project.origins
            stored = await mutation.insert_key(key)
            # Rule 5: the new key's digest too, which may have been probed, and be cached as unknown, before it existed.
            await mutation.record(ChangeKind.ISSUE, key.digest)
        return Mutated(mutation.revision, stored, origins=tuple(origins))

    async def revoke(self, project_id: ProjectId, key_id: KeyId | None, next_key: NewKey, caller: str) -> Mutated:
        """Revoke the named key, or else the active one, and store the project's next key.

        A key that is revoked already changes nothing. Raises NotFoundError for an unknown project or key.
        """
        which = _active if key_id is None else _keys.c.key_id == key_id
        query = _SELECT_KEYS.where(_keys.c.project_id == project_id, which)
        async with self._mutating(project_id, caller) as mutation:
            row = (await mutation.connection.execute(query)).one_or_none()
            if row is None:
                what = "active key" if key_id is None else f"key {key_id!r}"
                raise NotFoundError(f"no {what} in a project {project_id!r}")
            if row.revoke_time is not None:
                await mutation.connection.rollback()  # rule 11
                return Mutated(Revision(mutation.revision - 1), revoked_key=_key(row), is_new=False)
            revoke = _keys.update().where(_keys.c.key_id == row.key_id).values(revoke_time=mutation.now)
            await mutation.connection.execute(revoke)
            stored = await mutation.insert_key(next_key)
            await mutation.record(ChangeKind.REVOKE, Digest(row.digest), next_key.digest)  # rule 5
        return Mutated(mutation.revision, stored, _key(row, revoke_time=mutation.now))

    async def set_origins(self, project_id: ProjectId, origins: Sequence[str], caller: str) -> Mutated:
        """Replace the project's origins by these (normalised) ones.

        A list that is stored already changes nothing. Raises NotFoundError for an unknown project.
        """
        query = sa.select(_keys.c.digest).where(_keys.c.project_id == project_id, _active)
        async with self._mutating(project_id, caller) as mutation:
            project = await _existing_project(mutation.connection, project_id)
            if project.origins == tuple(origins):
                await mutation.connection.rollback()  # rule 11
                return Mutated(Revision(mutation.revision - 1), origins=project.origins, is_new=False)
            await mutation.update_origins(origins)
            await mutation.record(ChangeKind.SET_ORIGINS, *(await mutation.connection.execute(query)).scalars())
        return Mutated(mutation.revision, origins=tuple(origins))

    async def project(self, project_id: ProjectId) -> Project:
        """Return the project. Raises NotFoundError."""
        async with self.database.reading() as connection:
            return await _existing_project(connection, project_id)

    async def projects(self, *, after: str, limit: int, containing: str = "") -> list[Project]:
        """Return at most `limit` projects by id, from the first one greater than `after`, that contain a text."""
        query = _SELECT_PROJECTS.where(_projects.c.project_id > after).order_by(_projects.c.project_id).limit(limit)
        if containing:
            query = query.where(_projects.c.project_id.contains(containing.lower(), autoescape=True))
        async with self.database.reading() as connection:
            return [_project(row) for row in await connection.execute(query)]

    async def keys(self, project_id: ProjectId, *, before: Revision | None, limit: int) -> list[Key]:
        """Return at most `limit` of a project's keys issued before a revision, newest first; raise NotFoundError."""
        query = _SELECT_KEYS.where(_keys.c.project_id == project_id)
        if before is not None:
            query = query.where(_keys.c.create_revision < before)
        async with self.database.reading() as connection:
            await _existing_project(connection, project_id)
            rows = await connection.execute(query.order_by(_keys.c.create_revision.desc()).limit(limit))
            return [_key(row) for row in rows]

    async def changes(
        self,
        *,
        after: Revision,
        limit: int,
        project_id: ProjectId | None = None,
        before: Revision | None = None,
        is_newest_first: bool = False,
    ) -> list[Change]:
        """Return at most `limit` changes between the revisions (exclusive) in order, of one project or of all."""
        order = _changes.c.revision.desc() if is_newest_first else _changes.c.revision
        query = sa.select(_changes).where(_changes.c.revision > after).order_by(order).limit(limit)
        if before is not None:
            query = query.where(_changes.c.revision < before)
        if project_id is not None:
            query = query.where(_changes.c.project_id == project_id)
        async with self.database.statement() as connection:
            return [_change(row) for row in await connection.execute(query)]

    async def key_ids(self, changes: Sequence[Change]) -> dict[Digest, KeyId]:
        """Return whose the invalidated digests of these changes are: keys' rows stay for good."""
        digests = {digest for change in changes for digest in change.invalidated_digests}
        if not digests:
            return {}
        query = sa.select(_keys.c.digest, _keys.c.key_id).where(_keys.c.digest.in_(digests))
        async with self.database.statement() as connection:
            return {Digest(row.digest): KeyId(row.key_id) for row in await connection.execute(query)}

    @asynccontextmanager
    async def _mutating(self, project_id: ProjectId, caller: str) -> AsyncIterator["_Mutation"]:
        """Begin a mutation by taking the next revision; commit at the end, or roll back when the body raises.

        The counter's row lock puts mutations in one order, and their revisions without a gap (rule 6): what the body
        reads is all that came before, and nothing comes between. A body that rolls back itself has changed nothing.
        """
        bump = COUNTER.update().values(revision=COUNTER.c.revision + 1).returning(COUNTER.c.revision)
        async with self._turn, self.database.writing() as connection:
            revision = (await connection.execute(bump)).scalar_one()
            await self.database.stamp(connection, revision)
            yield _Mutation(connection, Revision(revision), self._now(), project_id, caller)
            await self.database.notify(connection)


class _Mutation(NamedTuple):
    """A transaction that changes one project, the revision that it gets, and who is the cause of it."""

    connection: AsyncConnection
    revision: Revision
    now: datetime
    project_id: ProjectId
    caller: str

    async def insert_key(self, key: NewKey) -> Key:
        await self.connection.execute(
            _keys.insert().values(
                key_id=key.key_id,
                project_id=self.project_id,
                digest=key.digest,
                create_revision=self.revision,
                create_time=self.now,
            )
        )
        return Key(key.key_id, self.project_id, self.revision, self.now, None, self.caller)

    async def update_origins(self, origins: Sequence[str]) -> None:
        update = _projects.update().where(_projects.c.project_id == self.project_id)
        await self.connection.execute(update.values(origins=list(origins)))

    async def record(self, kind: ChangeKind, *invalidated_digests: bytes) -> None:
        await self.connection.execute(
            _changes.insert().values(
                revision=self.revision,
                kind=kind.value,
                project_id=self.project_id,
                invalidated_digests=[digest.hex() for digest in invalidated_digests],
                caller=self.caller,
                create_time=self.now,
            )
        )


# Who issued a key stands in the audit trail, at the revision that it was issued with.
_creation = _changes.c.revision == _keys.c.create_revision
_creator = sa.func.coalesce(_changes.c.caller, "").label("creator")
_SELECT_KEYS = sa.select(_keys, _creator).select_from(_keys.outerjoin(_changes, _creation))
_SELECT_PROJECTS = sa.select(
    _projects, _keys.c.key_id, _keys.c.create_revision, _keys.c.create_time.label("key_create_time"), _creator
).select_from(
    _projects.outerjoin(_keys, sa.and_(_keys.c.project_id == _projects.c.project_id, _active)).outerjoin(
        _changes, _creation
    )
)


def _origin_list(stored: str | list[str]) -> OriginList:
    """Read a list as the driver gives it: SQLite's as text, PostgreSQL's has read the JSON already."""
    if stored in ("[]", []):
        return EVERY_ORIGIN
    return OriginList(json.loads(stored) if isinstance(stored, str) else stored)


def _key(row: sa.Row[Any], revoke_time: datetime | None = None) -> Key:
    revoke_time = revoke_time or row.revoke_time
    return Key(row.key_id, row.project_id, row.create_revision, row.create_time, revoke_time, row.creator)


async def _find_project(connection: AsyncConnection, project_id: ProjectId) -> Project | None:
    row = (await connection.execute(_SELECT_PROJECTS.where(_projects.c.project_id == project_id))).one_or_none()
    return None if row is None else _project(row)


async def _existing_project(connection: AsyncConnection, project_id: ProjectId) -> Project:
    if (project := await _find_project(connection, project_id)) is None:
        raise NotFoundError(f"no project {project_id!r}")
    return project


def _project(row: sa.Row[Any]) -> Project:
    active = None
    if row.key_id is not None:
        active = Key(row.key_id, row.project_id, row.create_revision, row.key_create_time, None, row.creator)
    return Project(row.project_id, tuple(row.origins), row.create_time, active)


def _change(row: sa.Row[Any]) -> Change:
    invalidated = tuple(Digest(bytes.fromhex(digest)) for digest in row.invalidated_digests)
    return Change(row.revision, ChangeKind(row.kind), row.project_id, invalidated, row.caller, row.create_time)
