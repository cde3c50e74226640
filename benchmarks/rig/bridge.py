"""The command `httpbridge`, but for its sink: it stores nothing, or its store is maintained all the time.

Usage: BENCH_SINK=null | maintained [BENCH_WATCH=off] python -m benchmarks.rig.bridge serve

`maintained` merges what is a second old, and looks for what to drop several times a second. With `BENCH_WATCH=off`
there is no lease protocol: no stream is opened, and what is cached is used without a lease, which is wrong and costs
nothing. Workers are started by this program again, with another command and the same environment.
"""

import os
import sys
from functools import partial
from pathlib import Path

from authsvc.client.holder import Holder
from authsvc.client.watcher import Watcher
from benchmarks.rig.null_sink import NullSink
from httpbridge import app
from httpbridge.cli import commands as cli
from httpbridge.config import Config
from httpbridge.log_store.maintenance import Maintenance, MaintenanceLimits
from httpbridge.log_store.merging import MergeLimits


async def open_null_sink(_config: Config, _log_writer: Path | None, _stack: object) -> NullSink:
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
    if os.environ["BENCH_SINK"] == "null":
        app._open_sink = open_null_sink  # type: ignore[assignment]
    else:
        app.Maintenance = partial(  # type: ignore[attr-defined, assignment]
            Maintenance,
            limits=MaintenanceLimits(merge_seconds=0.1, retention_seconds=0.2),
            merge_limits=MergeLimits(age_seconds=0),
        )
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
