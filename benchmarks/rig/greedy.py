"""One key's connections that send the same body over and over, until standard input ends.

Usage: python -m benchmarks.rig.greedy ADDRESS KEY CONNECTIONS BODY_FILE

The body goes as gzip. Prints a line once all have sent, and at the end how many requests were answered, how many of
them with 200, and in how many seconds. Who is refused waits for a tenth of a second.
"""

import asyncio
import gzip
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from benchmarks.rig.traffic import head

_REFUSED_SECONDS = 0.1


class Sent(msgspec.Struct, frozen=True):
    """What became of the requests."""

    answered: int
    stored: int
    """With 200."""
    seconds: float


async def main(address: str, api_key: str, connections: str, body_file: str) -> Sent:
    body = gzip.compress(Path(body_file).read_bytes())
    headed = head(api_key, len(body))[:-2] + b"Content-Encoding: gzip\r\n\r\n" + body
    host, _, port = address.rpartition(":")
    answered = stored = 0
    streams = [await asyncio.open_connection(host, int(port)) for _ in range(int(connections))]
    started = time.perf_counter()

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered, stored
        while True:
            writer.write(headed)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            answered += 1
            if answer.startswith(b"HTTP/1.1 200 "):
                stored += 1
            else:
                await asyncio.sleep(_REFUSED_SECONDS)

    senders = [asyncio.create_task(send(*each)) for each in streams]
    await asyncio.sleep(0)
    print("sending", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    done, _ = await asyncio.wait([ended, *senders], return_when=asyncio.FIRST_COMPLETED)
    seconds = time.perf_counter() - started
    for each in done - {ended}:
        each.result()  # raises: a connection broke
    for sender in senders:
        sender.cancel()
    return Sent(answered, stored, seconds)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(main(*sys.argv[1:]))).decode())
