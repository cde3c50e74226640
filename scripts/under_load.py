"""Run a command while loops keep the processors busy beside it: `scripts/under_load.py -- make test`.

It ends with the command's exit status, as a shell gives it: 128 and the number of the signal that killed it.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_LOOPS = 4
# It looks who its parent is: the loops must end, too, when we are killed.
_LOOP = """
import os
parent = int(os.environ["BUSY_FOR"])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def main() -> int:
    """Run the command of the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Run a command while busy loops run beside it.")
    parser.add_argument("--loops", type=int, default=_LOOPS, help="how many (default %(default)s)")
    parser.add_argument("command", nargs="+", help="after --, with its arguments")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    with _busy(arguments.loops):
        return _run(arguments.command)


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    """Keep that many processes busy meanwhile."""
    environ = os.environ | {"BUSY_FOR": str(os.getpid())}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # Ctrl-C is for the command: what it prints in the end is printed under load, too.
        processes.extend(
            subprocess.Popen([sys.executable, "-c", _LOOP], env=environ, process_group=0) for _ in range(loops)
        )
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _run(command: Sequence[str]) -> int:
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                continue  # the command got it as well, and knows what to do
            return status if status >= 0 else 128 - status
    finally:
        process.terminate()  # does nothing once it has ended
        process.wait()


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
