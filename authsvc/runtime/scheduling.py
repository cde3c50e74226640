"""How the processes of the key service share a core. `cli` calls it before it serves."""

import os
from contextlib import suppress


def use_batch_scheduling() -> None:
    """Keep threads of this process that are woken from interrupting the one that woke them; called before any starts.

    A call passes through several threads of gRPC and the event loop's. By Linux's usual policy each that is woken stops
    the last one in the middle of its work, where they share a core. What that costs `python -m benchmarks.validate`
    shows. In return the process does not interrupt others either.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # a sandbox may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
