"""Idempotency keys: a batch that is sent again with its key is stored once.

A batch with a key is a chunk of its own, and the key a row that is committed with it, so that whatever bridges the
copies reach, and whenever one is killed, the first commit alone stores it.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

KEPT_SECONDS = 24 * 3600

KEYS_MAX = 1_000_000
"""Remembered of a project; of more, the oldest are forgotten."""


class IdempotencyKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a client calls one batch."""

    key: str
    """1 to 255 printable ASCII characters."""
    body: bytes
    """SHA-256 of the decoded body."""


KeyRow = tuple[str, str, bytes]
"""Project, key, body."""


def note_in_sqlite(connection: sqlite3.Connection, rows: Sequence[KeyRow]) -> list[bytes | None]:
    """Note keys in the transaction; return for each the body it was noted with before, or None."""
    noted: list[bytes | None] = []
    for project_id, key, body in rows:
        expired = (
            "DELETE FROM idempotency_keys WHERE project_id = ? AND key = ? AND stored_at < strftime('%s', 'now') - ?"
        )
        connection.execute(expired, (project_id, key, KEPT_SECONDS))
        insert = "INSERT INTO idempotency_keys (project_id, key, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        if connection.execute(insert, (project_id, key, body)).rowcount:
            noted.append(None)
        else:
            find = "SELECT body FROM idempotency_keys WHERE project_id = ? AND key = ?"
            noted.append(connection.execute(find, (project_id, key)).fetchone()[0])
    return noted


async def note_in_postgres(driver: Any, rows: Sequence[KeyRow]) -> list[bytes | None]:
    """Note keys in the transaction of the driver's connection; likewise. Waits for others that note the same keys."""
    # In one order, so that two bridges never wait for each other. Of two rows with one key the first is noted.
    first = {row[:2]: row for row in reversed(rows)}
    given = list(zip(*map(first.__getitem__, sorted(first)), strict=True))
    await driver.execute(
        "DELETE FROM idempotency_keys AS keys USING unnest($1::text[], $2::text[]) AS given (project_id, key)"
        " WHERE keys.project_id = given.project_id AND keys.key = given.key"
        " AND keys.stored_at < extract(epoch FROM now()) - $3",
        *given[:2],
        KEPT_SECONDS,
    )
    # A key that is there is written as it was: so it is locked, and nobody forgets it before the commit.
    found = await driver.fetch(
        "INSERT INTO idempotency_keys AS keys (project_id, key, body)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])"
        " ON CONFLICT (project_id, key) DO UPDATE SET stored_at = keys.stored_at"
        " RETURNING keys.project_id, keys.key, keys.body, keys.xmax = 0 AS is_new",
        *given,
    )
    bodies = {(row["project_id"], row["key"]): row["body"] for row in found}
    new = {(row["project_id"], row["key"]) for row in found if row["is_new"]}
    noted: list[bytes | None] = []
    for row in rows:
        is_first = row[:2] in new
        new.discard(row[:2])
        noted.append(None if is_first else bodies[row[:2]])
    return noted
