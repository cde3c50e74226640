"""The log store as a worker has it: by way of the one process that writes to it (`writer`), over a Unix socket.

`app` opens it where several workers share a SQLite file. What waits together in a worker goes over as one message, and
is answered once it is committed; so a worker's group commit and the writer's work like one. A message that breaks off
is a 503 for all in it, and is never sent again: it may have been committed.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.origin_store import OriginCount

ANSWER_SECONDS_MAX = 10.0
"""For an answer, connecting included: the writer itself waits for less, so it hangs."""

LENGTH_BYTES = 4
"""Before each message: how long it is, big-endian."""

BUFFER_BYTES = 1024 * 1024
"""About the largest group."""


class WriteChunks(msgspec.Struct, tag="chunks", array_like=True, gc=False):
    """Store all of these or none."""

    chunks: list[Chunk]
    conflicts: list[int] = []
    """Filled in by the writer."""

    @property
    def weight(self) -> int:
        """About how many bytes they take."""
        return sum(256 + len(chunk.content) for chunk in self.chunks)

    @property
    def project_id(self) -> str:
        """Whose they are; empty when they are several projects'."""
        projects = {chunk.project_id for chunk in self.chunks}
        return projects.pop() if len(projects) == 1 else ""


class Probe(msgspec.Struct, frozen=True, tag="probe", array_like=True):
    """Write a little, durably."""


class Check(msgspec.Struct, frozen=True, tag="check", array_like=True):
    """Look at the file and its disk, and write nothing."""


class AddCounts(msgspec.Struct, frozen=True, tag="counts", array_like=True):
    """Add to the counts of origins."""

    counts: list[OriginCount]
    now: datetime


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The writer's answer to one message: nothing once it is done, or else why not, for the log."""

    reason: str | None = None
    conflicts: list[int] = []
    """Places of chunks that are not stored; see `sink.Store`."""


Message = WriteChunks | Probe | Check | AddCounts


class RemoteStore:
    """The store whose writer listens on `path`, over two connections, as it commits heavy and light groups.

    They are made when they are needed. Counts of origins need an instance of their own: no log waits for them.
    """

    def __init__(self, path: Path, answer_seconds_max: float = ANSWER_SECONDS_MAX) -> None:
        self._connections = [_WriterConnection(path, answer_seconds_max) for _ in range(2)]

    async def open(self) -> None:
        """Nothing: the writer has opened the file."""

    async def commit(self, chunks: list[Chunk]) -> list[int]:
        """See `sink.Store`."""
        return (await self._ask(WriteChunks(chunks))).conflicts

    async def add(self, counts: Sequence[OriginCount], now: datetime) -> None:
        """See `origin_counts.OriginCounterStore`."""
        await self._ask(AddCounts(list(counts), now))

    async def probe(self) -> None:
        """See `sink.Store`."""
        await self._ask(Probe())

    async def check(self) -> None:
        """See `sink.Store`."""
        await self._ask(Check())

    async def close(self) -> None:
        """Hang up."""
        for connection in self._connections:
            connection.close()

    async def _ask(self, message: Message) -> Answer:
        return await min(self._connections, key=_WriterConnection.is_busy).ask(message)


class _WriterConnection:
    """One message at a time, and its answer. Connected at the first, and again after the writer was away."""

    def __init__(self, path: Path, answer_seconds_max: float) -> None:
        self._path = path
        self._answer_seconds_max = answer_seconds_max
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Answer)

    def is_busy(self) -> bool:
        """Return whether a message is under way."""
        return self._turn.locked()

    async def ask(self, message: Message) -> Answer:
        """Return the answer once the writer has done it. Raises StoreUnavailableError."""
        data = self._encoder.encode(message)
        async with self._turn:
            try:
                async with asyncio.timeout(self._answer_seconds_max):
                    answer = await self._exchange(data)
            except BaseException as error:
                self.close()  # whoever asks next must not get this one's answer
                if isinstance(error, TimeoutError):
                    seconds = f"{self._answer_seconds_max:g} s"
                    raise StoreUnavailableError(f"no answer from the log writer in {seconds}") from None
                if isinstance(error, OSError | asyncio.IncompleteReadError):
                    raise StoreUnavailableError("the log writer is not running") from None
                raise
        if answer.reason is not None:
            raise StoreUnavailableError(answer.reason)
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _exchange(self, data: bytes) -> Answer:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the writer ended while nothing was asked, and there may be another one
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path), limit=BUFFER_BYTES)
        reader, writer = self._streams
        writer.writelines((len(data).to_bytes(LENGTH_BYTES, "big"), data))
        await writer.drain()
        return self._decoder.decode(await received(reader))


async def received(reader: asyncio.StreamReader) -> bytes:
    """Return the next message; raise IncompleteReadError when there is none, or half of one."""
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    return await reader.readexactly(length)
