"""What is in the chunks of a log store, read past the product's queries."""

from collections.abc import Iterable
from random import Random
from string import ascii_letters, digits
from typing import Any

import msgspec

from httpbridge.log_store.chunk import Content, Line, instant_of
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.scan import instant
from httpbridge.log_store.schema import WRITTEN_COLUMNS
from httpbridge.logs import LogBatch

SELECT = "SELECT id, project_id, content FROM chunks ORDER BY id"

_decode = msgspec.json.Decoder(Line).decode


COLUMNS = ", ".join(WRITTEN_COLUMNS)


_random = Random(13)


def incompressible(characters: int) -> str:
    """Return a text like no other, which compression makes hardly smaller than three quarters."""
    return "".join(_random.choices(ascii_letters + digits, k=characters))


def chunk_values(batch: LogBatch) -> tuple[object, ...]:
    """Return what a store has in WRITTEN_COLUMNS for a batch that is committed alone."""
    (chunk,) = chunks_of([encode(batch)])
    return chunk.columns


def entries_of(chunks: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the entries of chunks (id, project, content), each with the names of `StoredLog`."""
    found = []
    for chunk_id, project_id, compressed in chunks:
        content = Content(chunk_id, compressed)
        ids, lines = iter(content.ids), iter(content.lines)
        for run in content.head.runs:
            for _ in range(run.entries):
                line = _decode(next(lines))
                found.append(
                    msgspec.structs.asdict(line)
                    | {
                        "id": next(ids), "project_id": project_id, "key_id": content.head.keys[run.key],
                        "received_at": instant_of(run.received_at), "timestamp": instant(line.timestamp),
                        "level": line.level.value, "metadata": bytes(line.metadata).decode() or None,
                    }
                )  # fmt: skip
        assert (next(ids, None), next(lines, None)) == (None, None)
    return found
