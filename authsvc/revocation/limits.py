"""How long the revocation machinery waits, and how much it takes at once."""

from dataclasses import dataclass

from authsvc.storage.records import CHANGES_BEHIND_MAX


@dataclass(frozen=True, slots=True)
class RevocationLimits:
    """Of the change feed, the leases and the Watch streams of one process."""

    poll_seconds: float = 0.25
    """Between two looks at the changes, of which a notification may have been lost."""
    page: int = 500
    """Changes that are read, or sent on a stream, at once."""
    changes_kept: int = CHANGES_BEHIND_MAX
    """In memory; who is further behind is served from the database."""
    listen_again_seconds: float = 1.0
    lease_poll_seconds: float = 0.05
    """Between two looks at the leases, which other processes may renew without a notification."""
    opening_seconds: float = 5.0
    """For the first request of a stream."""
    queue_max: int = 1000
    """Events that a stream's holder has yet to read."""
    slow_seconds: float = 5.0
    """For a holder to read one."""
    read_seconds_max: float = 2.0
    """For the first look at the leases, beyond the time to wait: a response that names nobody is of little use."""
    response_seconds: float = 0.5
    """Of a caller's time, kept for the response's way back: one that comes late has lost the API key."""
    named_max: int = 100
    """Holders in the response to a mutation; the rest are counted."""
    sweep_seconds: float = 60.0
