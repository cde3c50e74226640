"""What a holder tells the service on a Watch stream: both sides of the lease protocol use it. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Holder to service: an acknowledgement and a request for a lease, both at once."""

    epoch: str
    holder_id: str
    name: str
    sequence: int
    applied_revision: int
    is_release: bool = False
    lease_seconds_max: float = float("inf")
    """The holder asks for no longer lease than this."""
