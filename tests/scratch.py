"""Where tests write: in memory where there is room, for half of what the stores' tests wait for is a disk's fsync."""

import os
import shutil
from pathlib import Path

_MEMORY = Path("/dev/shm")
_BYTES_MIN = 3 * 2**30


def _scratch() -> Path:
    try:
        is_roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _BYTES_MIN
    except OSError:
        is_roomy = False
    return _MEMORY if is_roomy else Path("/tmp")


SCRATCH = _scratch()
"""With a short path, whatever TMPDIR says: a socket's path may have 104 characters."""
