"""Where tests write: in memory where there is room, for half of what the stores' tests wait for is a disk's fsync."""

import os
from pathlib import Path

_MEMORY = Path("/dev/shm")
_BYTES_MIN = 3 * 2**30


def _scratch() -> Path:
    try:
        system = os.statvfs(_MEMORY)
    except OSError:
        return Path("/tmp")
    is_fit = os.access(_MEMORY, os.W_OK) and not system.f_flag & os.ST_NOEXEC
    return _MEMORY if is_fit and system.f_bavail * system.f_frsize >= _BYTES_MIN else Path("/tmp")


SCRATCH = _scratch()
"""With a short path, whatever TMPDIR says: a socket's path may have 104 characters."""
