"""The command `httpbridge`, but for its sink: it stores nothing, or its commits are counted.

Usage: BENCH_SINK=null | counted python -m benchmarks.rig.bridge serve

`counted` prints `commits=N` at its end. Workers are started by this program again, with another command and the same
environment.
"""

import os
import sys
import time
from functools import partial

from benchmarks.rig.null_sink import NullSink
from httpbridge import app, cli
from httpbridge.config import Config
from httpbridge.sinks.sql import SqlSink, open_sql_sink


async def open_null_sink(_config: Config) -> NullSink:
    """Store nothing."""
    return NullSink()


def main() -> None:
    """Run the command on an app that opens another sink."""
    sinks: list[SqlSink] = []

    async def open_counted_sink(config: Config) -> SqlSink:
        sinks.append(await open_sql_sink(config.sink_url(), monotonic=time.monotonic))
        return sinks[0]

    is_null = os.environ["BENCH_SINK"] == "null"
    app.serve = partial(app.serve, open_sink=open_null_sink if is_null else open_counted_sink)
    try:
        cli.main(sys.argv[1:])
    finally:
        for sink in sinks:
            print(f"commits={sink.commits}")


if __name__ == "__main__":
    main()
