"""Concurrent senders whose every batch can be found again, and the check that none was lost, torn or doubled."""

import asyncio
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tests.http_exchange import Answer, Connection, NoAnswerError, request

_SIZES = (1, 1, 2, 1, 30, 1, 1000, 1)
_PAUSE_SECONDS = 0.01
"""Between two tries to connect to a server that is away."""


@dataclass(slots=True)
class Sent:
    """One batch, and what became of it."""

    size: int
    status: int | None = None
    """None: no answer, or half of one."""
    is_torn_answer: bool = False


class Load:
    """Senders that post batches one after the other, each on a connection of its own, until they are stopped.

    An entry's message is `BATCH/INDEX`. Bounded by `batches_max`.
    """

    def __init__(
        self, name: str, key: str, *, senders: int = 8, batches_max: int = 20_000, small: bool = False
    ) -> None:
        self._name = name
        self._key = key
        self._senders = senders
        self._small = small
        self._numbers = iter(range(batches_max))
        self._sizes = itertools.cycle((1,) if small else _SIZES)
        self._stopped = False
        self.sent: dict[str, Sent] = {}
        self.closing: Counter[bool] = Counter()
        """Answers by whether they end their connection."""

    @property
    def statuses(self) -> Counter[int | None]:
        """How many batches had which outcome; those still on their way count as None."""
        return Counter(sent.status for sent in self.sent.values())

    def stop(self) -> None:
        """Send nothing new."""
        self._stopped = True

    async def run(self, address: str, *, reconnects: bool) -> None:
        """Send until stopped; without `reconnects` each sender ends with its connection."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._senders):
                group.create_task(self._sender(address, reconnects))

    async def _sender(self, address: str, reconnects: bool) -> None:
        while not self._stopped:
            try:
                async with Connection(address) as connection:
                    await self._send_all(connection)
            except (NoAnswerError, asyncio.IncompleteReadError, OSError):
                pass  # noted where it was sent; or nobody listens
            if not reconnects:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _send_all(self, connection: Connection) -> None:
        while not self._stopped and (number := next(self._numbers, None)) is not None:
            batch, size = f"{self._name}-{number}", next(self._sizes)
            sent = self.sent[batch] = Sent(size)
            connection.send(request(key=self._key, body=body(batch, size)))
            try:
                answer = await connection.answer()
            except NoAnswerError:
                raise
            except (asyncio.IncompleteReadError, ConnectionError):
                sent.is_torn_answer = True
                raise
            sent.status = answer.status
            self.closing[closes(answer)] += 1
            if closes(answer):
                return


def closes(answer: Answer) -> bool:
    """Whether the server said that this answer is the connection's last."""
    return answer.headers.get("connection", "").lower() == "close"


def body(batch: str, size: int) -> bytes:
    """Return a batch whose entries say which batch, and where in it."""
    logs = [{"level": "info", "message": f"{batch}/{i}", "metadata": {"size": size}} for i in range(size)]
    return json.dumps({"logs": logs}).encode()


def check_stored(stored_messages: Iterable[str], sent: dict[str, Sent]) -> None:
    """Fail unless each batch with a 200 is stored whole and once, and every other is whole or absent."""
    stored: dict[str, list[int]] = defaultdict(list)
    for message in stored_messages:
        batch, _, index = message.rpartition("/")
        stored[batch].append(int(index))
    assert stored.keys() <= sent.keys()
    for batch, outcome in sent.items():
        indices = stored.get(batch)
        if indices is not None or outcome.status == 200:
            assert indices == list(range(outcome.size)), f"{batch}, answered {outcome.status}, of {outcome.size}"
