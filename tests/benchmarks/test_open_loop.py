"""The generator of load at a fixed rate: latency counts from when a request was due, whatever the server does."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.rig.open_loop import drive, flaw, summary
from tests.clocks import Clock

REQUEST = b"POST /ingest/logs HTTP/1.1\r\n\r\n"


@contextmanager
def server(status: Callable[[int], int]) -> Iterator[tuple[str, int]]:
    """Serve one connection; `status` is called with each request's number, and the answer goes out when it returns."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                number = 0
                while connection.recv(len(REQUEST), socket.MSG_WAITALL):
                    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status(number))
                    number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


def test_requests_that_wait_behind_a_slow_one_count_from_when_they_were_due() -> None:
    """A server that stands still for a second delays all ten requests of that second, not the one that it holds."""
    clock = Clock()

    def stand_still_at_first(number: int) -> int:
        if number == 0:
            clock.now = 1001.0
        return 200

    with server(stand_still_at_first) as address:
        latencies = drive(address, lambda _: REQUEST, per_second=10, seconds=1, connections=1, clock=clock)

    assert latencies == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_what_is_not_answered_with_200_has_no_latency_and_is_counted() -> None:
    clock = Clock()

    def refuse_the_second(number: int) -> int:
        clock.now = 1001.0
        return 503 if number == 1 else 200

    with server(refuse_the_second) as address:
        latencies = drive(address, lambda _: REQUEST, per_second=3, seconds=1, connections=1, clock=clock)

    assert latencies[1] is None
    seen = summary(latencies, per_second=3)
    assert (seen.requests, seen.failed) == (3, 1)
    assert seen.max == pytest.approx(1000)


def test_quantiles_are_of_those_that_were_answered() -> None:
    seen = summary([number / 1000 for number in range(1, 101)] + [None], per_second=1000)
    assert (seen.p50, seen.p90, seen.p99, seen.max) == (50, 90, 99, 100)


def test_latencies_count_only_where_nothing_failed_and_the_rate_was_served() -> None:
    served = summary([0.001] * 1000, per_second=100)
    assert flaw([served]) is None
    assert served.served_per_second == pytest.approx(100)

    one_failed = summary([0.001] * 999 + [None], per_second=100)
    assert flaw([served, one_failed, served]) == "1 requests failed"

    behind = summary([number * 0.0002 for number in range(1000)], per_second=100)
    assert flaw([served, behind, behind]) == "98.1% of the rate was served"
    assert flaw([served, served, behind]) is None, "one disturbed round of three"
