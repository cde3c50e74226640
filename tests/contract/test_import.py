"""Imports into real stores, on which others work, and which are killed."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from httpbridge.cli.importing import import_logs
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import sink
from httpbridge.log_store.chunk import Chunk, Content
from httpbridge.log_store.reader import read
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import store_at
from tests.contract.stored import AT, chunk_rows, made, reading, sink_at
from tests.waiting import until

HTTPBRIDGE = Path(sys.executable).parent / "httpbridge"
WINDOW = 4000
LINES = [
    json.dumps({"timestamp": "2026-11-23T20:15:00Z", "level": "info", "service": f"s{n % 3}", "message": str(n)}) + "\n"
    for n in range(3 * WINDOW)
]


async def messages(url: str) -> Counter[str]:
    async with reading(url) as store:
        return Counter([log.message async for log in read(store, LogFilter(project_id="demo", since=AT))])


async def imported(url: str) -> int:
    """Return how many entries of an import are stored."""
    async with reading(url) as store:
        rows = await chunk_rows(store)
    return sum(row.entries for row in rows if Content(row.id, row.content).head.keys == ["import"])


EXPECTED = Counter(map(str, range(len(LINES))))


async def test_an_import_that_is_killed_and_run_again_stores_everything_once(
    database_url: str, tmp_path: Path, is_long: bool
) -> None:
    """Also while a bridge has the store open, and writes to it."""
    environ = os.environ | {"HTTPBRIDGE_LOG_STORE_URL": database_url, "HTTPBRIDGE_STATE_DIR": str(tmp_path / "state")}
    start = partial(
        asyncio.create_subprocess_exec, HTTPBRIDGE, "import", "demo", "-", stdin=PIPE, stderr=PIPE, env=environ
    )
    async with sink_at(database_url) as bridge:

        async def write_on() -> None:
            for _ in range(100):
                await bridge.write(made("other"))

        async def has_begun() -> bool:
            return await imported(database_url) > 0

        writing = asyncio.create_task(write_on())
        importer = await start()
        assert importer.stdin is not None
        importer.stdin.write("".join(LINES[: WINDOW * 2 + 100]).encode())
        await until("some of it is stored", has_begun)
        importer.kill()
        await importer.communicate()
        assert 0 < await imported(database_url) <= 2 * WINDOW
        for _ in range(2 if is_long else 1):
            again = await start()
            _, errors = await again.communicate("".join(LINES).encode())
            assert errors.startswith(b"imported 12,000 entries, "), errors
        await writing
    assert await messages(database_url) == EXPECTED + Counter({"other": 100})


async def test_an_import_whose_store_fails_goes_on_where_it_was(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer to a commit is lost, after it or before it."""
    file = tmp_path / "logs.ndjson"
    file.write_text("".join(LINES))
    work: dict[str, Any] = {"body_bytes_max": 5 * 1024 * 1024, "skips_bad": False}

    def failing(number: int, *, is_stored: bool) -> Callable[[str], Any]:
        def make(url: str) -> Any:
            store = store_at(url)
            commit, commits = store.commit, 0

            async def fail_once(chunks: list[Chunk]) -> list[int]:
                nonlocal commits
                commits += 1
                if commits != number:
                    return await commit(chunks)
                if is_stored:
                    await commit(chunks)
                raise StoreUnavailableError("lost")

            monkeypatch.setattr(store, "commit", fail_once)
            return store

        return make

    for number, is_stored in ((1, True), (1, False), (9, True), (5, False)):
        monkeypatch.setattr(sink, "store_at", failing(number, is_stored=is_stored))
        with pytest.raises(StoreUnavailableError, match="lost"):
            await import_logs(database_url, "demo", file, **work)
        assert "stored" in capsys.readouterr().err
    monkeypatch.undo()
    assert await import_logs(database_url, "demo", file, **work) is None
    assert await messages(database_url) == EXPECTED


async def test_chunks_of_an_import_have_what_it_says(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "logs.ndjson"
    file.write_text("".join(LINES[:10]))
    assert await import_logs(database_url, "demo", file, body_bytes_max=1000, skips_bad=False) is None
    async with reading(database_url) as store:
        logs = [log async for log in read(store, LogFilter(project_id="demo"))]
    assert {log.key_id for log in logs} == {"import"}
    assert {(log.service, log.message) for log in logs} == {(f"s{n % 3}", str(n)) for n in range(10)}
