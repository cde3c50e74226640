"""The command `httpbridge`, but for its sink: it stores nothing, or its commits are counted.

Usage: BENCH_SINK=null | counted [BENCH_WATCH=off] python -m benchmarks.rig.bridge serve

`counted` prints `commits=N` at its end. With `BENCH_WATCH=off` there is no lease protocol: no stream is opened, and
what is cached is used without a lease, which is wrong and costs nothing. Workers are started by this program again,
with another command and the same environment.
"""

import os
import sys
import time
from pathlib import Path

from authsvc.client.holder import Holder
from authsvc.client.watcher import Watcher
from benchmarks.rig.null_sink import NullSink
from httpbridge import app
from httpbridge.cli import commands as cli
from httpbridge.config import Config
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.sink import SqlSink, store_at


async def open_null_sink(_config: Config, _log_writer: Path | None) -> NullSink:
    """Store nothing."""
    return NullSink()


async def open_no_stream(watcher: Watcher) -> None:
    """Be idle until the bridge stops."""
    await watcher._leaving.wait()


def main() -> None:
    """Run the command on an app that opens another sink."""
    if os.environ.get("BENCH_WATCH") == "off":
        Watcher.run = open_no_stream  # type: ignore[method-assign, assignment]
        Holder.is_live = Holder.may_keep = lambda *_: True  # type: ignore[method-assign, assignment]
    is_null = os.environ["BENCH_SINK"] == "null"
    commits = 0

    async def open_counted_sink(config: Config, _log_writer: Path | None) -> SqlSink:
        store = store_at(config.store_url())
        commit = store.commit

        async def counted(chunks: list[Chunk]) -> list[int]:
            nonlocal commits
            commits += 1
            return await commit(chunks)

        store.commit = counted  # type: ignore[method-assign]
        sink = SqlSink(store, monotonic=time.monotonic, bounds=None)
        await sink.open()
        return sink

    app._open_sink = open_null_sink if is_null else open_counted_sink  # type: ignore[assignment]
    try:
        cli.main(sys.argv[1:])
    finally:
        if not is_null:
            print(f"commits={commits}")


if __name__ == "__main__":
    main()
