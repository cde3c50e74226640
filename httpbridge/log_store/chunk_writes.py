"""What maintenance does to chunks within a transaction. For both databases."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.schema import WRITTEN_COLUMNS, NowSeconds, chunks, idempotency_keys, ids_of, log_store

FORGOTTEN_MAX = 2000
"""Idempotency keys a transaction: some 10 ms, in which nobody else writes to a SQLite file."""


class StoredChunk(msgspec.Struct, frozen=True, gc=False):
    """A chunk as the store has it. The names are those of the columns."""

    id: int
    span: int
    version: int
    stored_at: int
    chunk: Chunk


def maintain(connection: sa.Connection, maintainer: str, seconds: int) -> bool:
    """Become or stay who maintains the store, for so long; return False while another one is."""
    now = NowSeconds()
    is_mine = sa.or_(log_store.c.maintainer == maintainer, log_store.c.maintained_until < now)
    taking = log_store.update().where(is_mine).values(maintainer=maintainer, maintained_until=now + seconds)
    return connection.execute(taking).rowcount == 1


def replace(connection: sa.Connection, old: Sequence[tuple[int, int]], new: StoredChunk | None) -> bool:
    """Put one chunk, or nothing, in the place of others, given by id and version.

    Return False, and do nothing, if they are no longer as they were.
    """
    of_old = chunks.c.id.in_(ids_of(id_ for id_, _ in old))
    found = connection.execute(sa.select(chunks.c.id, chunks.c.version).where(of_old).with_for_update()).all()
    if sorted(map(tuple, found)) != sorted(old):
        return False
    connection.execute(chunks.delete().where(of_old))
    if new is not None:
        values = dict(zip(WRITTEN_COLUMNS, new.chunk.columns, strict=True))
        values |= {"id": new.id, "span": new.span, "version": new.version, "stored_at": new.stored_at}
        connection.execute(chunks.insert().values(values))
    return True


def forget(connection: sa.Connection, which: sa.ColumnElement[bool], limit: int) -> int:
    """Forget so many of some idempotency keys at the most, the oldest first; return how many."""
    rows = idempotency_keys
    # In one statement: a key may be noted anew at any time, and then it stays.
    oldest = sa.select(rows.c.project_id, rows.c.key).where(which).order_by(rows.c.stored_at).limit(limit)
    found = sa.tuple_(rows.c.project_id, rows.c.key).in_(oldest)
    return connection.execute(rows.delete().where(found)).rowcount


@contextmanager
def overwriting_less(connection: sa.Connection) -> Iterator[None]:
    """On SQLite, leave the content of pages that become free as it is: for what is only dropped, which is much.

    Otherwise they are overwritten. Left as they are, a few of them would be used again with some of it in their ends.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        connection.exec_driver_sql("PRAGMA secure_delete=FAST").all()
    try:
        yield
    finally:
        if is_sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete=ON").all()
