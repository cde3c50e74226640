"""Latency at a fixed arrival rate: requests are due at instants that nothing moves, and waiting for them counts.

Usage: python -m benchmarks.rig.open_loop ADDRESS REQUESTS_A_SECOND SECONDS BODY_FILE KEYS_FILE STATUS

A closed loop asks less of a server that is slow, and so leaves out just the requests that would have waited
(coordinated omission). Here request n is due at n / rate whatever became of those before, and its latency is counted
from then: where all connections are busy, that includes the wait for one. A thread of its own, without an event loop:
the instants are kept to some tens of microseconds.
"""

import gc
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.rig.processes import output_of
from benchmarks.rig.traffic import head

CONNECTIONS = 128
SERVED_SHARE_MIN = 0.99
_RECEIVE_BYTES = 65_536
_GIVE_UP_SECONDS = 10.0


class Latencies(msgspec.Struct, frozen=True):
    """In milliseconds, of requests that were answered with the status expected; `failed` were not."""

    requests: int
    failed: int
    due_per_second: float
    served_per_second: float
    """From when the first was due to the last answer, or to the end of the time: less than was due under a backlog."""
    p50: float
    p90: float
    p99: float
    max: float


def drive(
    address: tuple[str, int],
    request: Callable[[int], bytes],
    *,
    per_second: float,
    seconds: float,
    status: int = 200,
    connections: int = CONNECTIONS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float | None]:
    """Send for so many seconds; return each request's latency in seconds, in the order they were due.

    `request` makes the one with that number. None for what was not answered with `status`, or not within ten seconds
    of the end. An answer has to fit into 64 KiB.
    """
    total = round(per_second * seconds)
    latencies: list[float | None] = [None] * total
    idle: deque[socket.socket] = deque()
    poll = select.epoll()
    by_file: dict[int, socket.socket] = {}
    carried: dict[int, int] = {}
    """The request that each busy connection carries."""
    try:
        for _ in range(connections):
            connection = socket.create_connection(address)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            by_file[connection.fileno()] = connection
            poll.register(connection, select.EPOLLIN)
            idle.append(connection)
        started = clock()
        due_next = 0
        while due_next < total or carried:
            now = clock() - started
            if now > seconds + _GIVE_UP_SECONDS:
                break
            while due_next < total and idle and due_next / per_second <= now:
                connection = idle.popleft()
                connection.sendall(request(due_next))
                carried[connection.fileno()] = due_next
                due_next += 1
            wait = max(0.0, due_next / per_second - (clock() - started)) if due_next < total and idle else 1.0
            # epoll's own timeout is in whole milliseconds.
            if wait > 0 and not select.select([poll], [], [], wait)[0]:
                continue
            for file, _ in poll.poll(0):
                answer = by_file[file].recv(_RECEIVE_BYTES)
                number = carried.pop(file)
                if answer.startswith(b"HTTP/1.1 %d " % status):
                    latencies[number] = clock() - started - number / per_second
                if answer:
                    idle.append(by_file[file])
                else:
                    poll.unregister(file)
    finally:
        poll.close()
        for connection in by_file.values():
            connection.close()
    return latencies


def summary(latencies: list[float | None], per_second: float) -> Latencies:
    """Return the quantiles of what was answered, something at least; what failed has none, and is counted."""
    ordered = sorted(seconds for seconds in latencies if seconds is not None)
    p50, p90, p99, longest = (ordered[(len(ordered) - 1) * percent // 100] * 1000 for percent in (50, 90, 99, 100))
    ended = max(number / per_second + seconds for number, seconds in enumerate(latencies) if seconds is not None)
    return Latencies(
        requests=len(latencies),
        failed=len(latencies) - len(ordered),
        due_per_second=per_second,
        served_per_second=len(ordered) / max(ended, len(latencies) / per_second),
        p50=p50,
        p90=p90,
        p99=p99,
        max=longest,
    )


def flaw(rounds: Sequence[Latencies]) -> str | None:
    """Return why these latencies are not those of the rate that was asked for, or None."""
    failed = sum(each.failed for each in rounds)
    if failed:
        return f"{failed} requests failed"
    share = median(each.served_per_second / each.due_per_second for each in rounds)
    return f"{share:.1%} of the rate was served" if share < SERVED_SHARE_MIN else None


async def measure(
    directory: Path,
    address: str,
    *,
    body: bytes,
    keys: Sequence[str],
    per_second: float,
    seconds: float,
    status: int = 200,
) -> Latencies:
    """Drive from a process of its own, on this one's core, with each key in turn; `directory` takes what it reads."""
    body_file, keys_file = directory / "open-loop-body", directory / "open-loop-keys"
    body_file.write_bytes(body)
    keys_file.write_text("\n".join(keys))
    arguments = [address, str(per_second), str(seconds), str(body_file), str(keys_file), str(status)]
    output = await output_of(sys.executable, "-m", "benchmarks.rig.open_loop", *arguments)
    return msgspec.json.decode(output, type=Latencies)


def main(address: str, per_second: str, seconds: str, body_file: str, keys_file: str, status: str) -> None:
    host, _, port = address.rpartition(":")
    body = Path(body_file).read_bytes()
    keys = Path(keys_file).read_text().split()

    def request(number: int) -> bytes:
        return head(keys[number % len(keys)], len(body)) + body

    gc.disable()
    latencies = drive(
        (host, int(port)), request, per_second=float(per_second), seconds=float(seconds), status=int(status)
    )
    if all(latency is None for latency in latencies):
        sys.exit(f"of {len(latencies)} requests none was answered with {status}")
    print(msgspec.json.encode(summary(latencies, float(per_second))).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
