"""What `httpbridge import` does: a file of NDJSON, compressed or not, goes into the log store."""

import asyncio
import gzip
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from authsvc.runtime.commands import note, plain
from httpbridge.cli.terminal import ProgressLine, counted
from httpbridge.http.bodies import compression
from httpbridge.ingest.log_import import BadLine, Line, Window, read_window, windows
from httpbridge.log_store.sink import SqlSink, open_sql_sink
from httpbridge.log_store.zstandard import zstd

_BUFFER_BYTES = 1024 * 1024
_MAGIC_BYTES = 8
_LINE_EXTRA_BYTES = 16 * 1024
"""What a line may be longer than a request's body: it has also what a batch says for all of its entries."""
_BAD_SHOWN = 20

_READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)


class _Importer:
    def __init__(self, sink: SqlSink, project_id: str, name: str, line_bytes_max: int, *, skips_bad: bool) -> None:
        self._sink = sink
        self._name = name
        self._skips_bad = skips_bad
        self._read_window = partial(read_window, project_id=project_id, line_bytes_max=line_bytes_max)
        self.entries = self.size = self.bad = 0
        self.last = 0
        """The last line of what is stored."""

    async def run(self, lines: Iterator[list[Line]], shown: Callable[[], None]) -> str | None:
        """Store the windows, one after the other; return why it ended before the last of them."""
        storing: asyncio.Task[None] | None = None
        failure: str | None = None
        try:
            while failure is None:
                try:
                    window = await asyncio.to_thread(self._next, lines)
                except _READ_ERRORS as error:
                    failure = f"{self._name}: cannot be read to its end: {_reason(error)}"
                    break
                if window is None:
                    break
                if window.bad and not self._skips_bad:
                    number, reason = window.bad[0]
                    failure = f"{self._name}, line {number}: {reason}"
                    break
                self._note_bad(window.bad)
                if storing is not None:
                    await storing
                    shown()
                # The next one is read meanwhile.
                storing = asyncio.create_task(self._store(window))
        finally:
            if storing is not None:
                await storing
        return failure

    def _next(self, lines: Iterator[list[Line]]) -> Window | None:
        window = next(lines, None)
        if window is None:
            return None
        self.size += sum(len(line.text) + 1 for line in window)
        return self._read_window(window, received_at=datetime.now(UTC))

    async def _store(self, window: Window) -> None:
        await asyncio.gather(*(self._sink.write(batch, key) for batch, key in window.batches))
        self.entries += sum(len(batch.entries) for batch, _ in window.batches)
        self.last = window.last

    def _note_bad(self, bad: list[BadLine]) -> None:
        for number, reason in bad[: max(0, _BAD_SHOWN - self.bad)]:
            note(f"{plain(self._name)}, line {number}: {reason}; skipped")
        self.bad += len(bad)


async def import_logs(
    url: str, project_id: str, file: Path | None, *, body_bytes_max: int, skips_bad: bool
) -> str | None:
    """Store the entries of a file, of standard input for None, in the log store at `url`; tell the user how many.

    Return what could not be read or is refused, None if that is nothing; the windows before it are stored. Raises
    StoreSetupError and StoreUnavailableError.
    """
    line_bytes_max = body_bytes_max + _LINE_EXTRA_BYTES
    name = "standard input" if file is None else str(file)
    line = ProgressLine()
    with ExitStack() as stack:
        try:
            stream = _opened(file, stack)
        except _READ_ERRORS as error:
            return f"{name}: {_reason(error)}"
        sink = await open_sql_sink(url, monotonic=time.monotonic)
        importer = _Importer(sink, project_id, name, line_bytes_max, skips_bad=skips_bad)
        is_done = False
        try:
            failure = await importer.run(
                windows(stream, line_bytes_max),
                lambda: line.update(lambda: line.amounts(importer.entries, importer.size)),
            )
            is_done = failure is None
        finally:
            line.clear()
            if not is_done:
                note(_stored(importer))
            await sink.close()
    if failure is not None:
        return failure
    skipped = f"; {counted(importer.bad, 'line', 'lines')} skipped" if importer.bad else ""
    note(f"imported {line.amounts(importer.entries, importer.size)}{skipped}")
    return None


def _stored(importer: _Importer) -> str:
    if not importer.entries:
        return "nothing is stored"
    return (
        f"{counted(importer.entries)} up to line {importer.last:,} are stored,"
        " and not again if the same file is imported within 24 hours"
    )


def _opened(file: Path | None, stack: ExitStack) -> BinaryIO:
    """Open what is read, decompressed by what it begins with. Raises OSError."""
    if file is not None:
        raw: BufferedReader = stack.enter_context(BufferedReader(file.open("rb", buffering=0), _BUFFER_BYTES))
    elif isinstance(sys.stdin, TextIOWrapper) and isinstance(sys.stdin.buffer, BufferedReader):
        raw = sys.stdin.buffer
    else:
        raise OSError("is closed")
    kind = compression(raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES])
    if kind == "gzip":
        return BufferedReader(stack.enter_context(gzip.GzipFile(fileobj=raw)), _BUFFER_BYTES)
    if kind == "zstd":
        return BufferedReader(stack.enter_context(zstd.ZstdFile(raw)), _BUFFER_BYTES)
    if kind is not None:
        raise OSError(f"looks like {kind}, which is not read here")
    return raw


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return str(error) or type(error).__name__
