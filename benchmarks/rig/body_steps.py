"""How long each step of reading a body takes, for the dearest bodies known. A process of its own.

Usage: python -m benchmarks.rig.body_steps BYTES ROUNDS

Prints a line of JSON: for each body, by its name, the longest step and all of them together, in seconds. That is
processor time, the shortest of the rounds', so that what else the machine does counts as little as it can.
"""

import sys
import time
from datetime import UTC, datetime

import msgspec

from benchmarks.rig.processes import SERVER_CORE, output_of
from httpbridge.errors import BodyRefusedError
from httpbridge.ingest.log_parser import parse
from httpbridge.log_store.encoding import encode

_ENTRY = '{"level":"info","message":"m"<>}'
_ONE = f'{{"logs":[{_ENTRY}]}}'


class Steps(msgspec.Struct, frozen=True):
    """What reading a body takes."""

    longest_seconds: float
    seconds: float
    count: int


async def measure(size: int, rounds: int) -> dict[str, Steps]:
    """Run the process on the servers' core."""
    output = await output_of(
        sys.executable, "-m", "benchmarks.rig.body_steps", str(size), str(rounds), core=SERVER_CORE
    )
    return msgspec.json.decode(output, type=dict[str, Steps])


def dear_bodies(size: int) -> dict[str, bytes]:
    """Return a body of about so many bytes for each way that is known to be dear."""

    def filled(frame: str, unit: str, entries: int = 1) -> bytes:
        """Repeat the unit where `<>` is in the frame; of several entries, in each."""
        before, after = frame.split("<>")
        entry = before + unit * ((size // entries - len(before) - len(after) - 1) // len(unit.encode())) + after
        return entry.encode() if entries == 1 else f'{{"logs":[{",".join([entry] * entries)}]}}'.encode()

    message = '{"logs":[{"level":"info","message":"<>"}]}'
    metadata = _ONE.replace("<>", ',"metadata":{"a":<>}')
    entry = '{"level":"info","message":"<>"}'
    return {
        "a message of ASCII": filled(message, "x"),
        "a message of `é😀 abc`": filled(message, "é😀 abc"),
        r"a message of `\n`": filled(message, r"\n"),
        r"a message of `\u00e9`": filled(message, r"\u00e9"),
        r"a message of `\ud83d\ude00`": filled(message, r"\ud83d\ude00"),
        r"a message of `\ud83d`, alone": filled(message, r"\ud83d"),
        r"a message of `\u0000`": filled(message, r"\u0000"),
        r"a message of `\\`": filled(message, r"\\"),
        "metadata of `1,1`": filled(metadata.replace("<>", "[1<>]"), ",1"),
        "metadata of `1.5e3`": filled(metadata.replace("<>", "[1<>]"), ",1.5e3"),
        "metadata of `{}` and `1`": filled(metadata.replace("<>", "[1<>]"), ",{},1,1,1"),
        "metadata of arrays, 100 deep": filled(
            metadata.replace("<>", "[1<>]"), "," + "[" * 100 + "1,1,1" * 80 + "]" * 100
        ),
        'metadata of `{"":1}`': filled(metadata.replace("<>", "[1<>]"), ',{"":1}'),
        "metadata of white space": filled(metadata.replace("<>", "[1<>]"), " "),
        "1,000 messages": filled(entry, "x", 1000),
        r"1,000 messages of `\ud83d\ude00`": filled(entry, r"\ud83d\ude00", 1000),
        "1,000 leap seconds": filled(
            _ENTRY.replace("<>", ',"timestamp":"2016-12-31T23:59:60Z","context":"<>"'), "x", 1000
        ),
        "1,000 problems": filled(_ENTRY.replace("<>", ',"timestamp":"2016-12-31T23:59:60Z","context":"<>"'), "x", 1000)[
            :-3
        ]
        + b',"level":1}]}',
        "the same field again and again": filled(_ONE, ',"context":null'),
        "`logs` again and again": filled('{"x":1<>,"logs":[]}', ',"logs":[0]'),
    }


def steps(body: bytes, rounds: int) -> Steps:
    """Read a body so many times."""
    best: list[float] = []
    for _ in range(rounds):
        times = list(_times(body))
        best = [min(pair) for pair in zip(best, times, strict=True)] if best else times
    return Steps(max(best), sum(best), len(best))


def _times(body: bytes) -> list[float]:
    reading = parse(body, "project-0000000", "key_0123456789abcdef", datetime.now(UTC))
    times: list[float] = []
    while True:
        started = time.thread_time()
        try:
            next(reading)
        except BodyRefusedError:
            return [*times, time.thread_time() - started]
        except StopIteration as end:
            encode(end.value)  # in the same step
            return [*times, time.thread_time() - started]
        times.append(time.thread_time() - started)


if __name__ == "__main__":
    measured = {name: steps(body, int(sys.argv[2])) for name, body in dear_bodies(int(sys.argv[1])).items()}
    print(msgspec.json.encode(measured).decode())
