"""The bridge as `httpbridge serve` runs it, but for its sink: it stores nothing, or its commits are counted.

Usage: python -m benchmarks.rig.bridge null | counted, with the environment of `httpbridge serve`

`counted` prints `commits=N` at its end.
"""

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


def main(kind: str) -> None:
    """Run the command `serve` on an app that opens another sink."""
    sinks: list[SqlSink] = []

    async def open_counted_sink(config: Config) -> SqlSink:
        sinks.append(await open_sql_sink(config.sink_url(), monotonic=time.monotonic))
        return sinks[0]

    app.serve = partial(app.serve, open_sink=open_null_sink if kind == "null" else open_counted_sink)
    try:
        cli.main(["serve"])
    finally:
        for sink in sinks:
            print(f"commits={sink.commits}")


if __name__ == "__main__":
    main(sys.argv[1])
