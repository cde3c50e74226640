"""What a holder and the service tell each other on a Watch stream: both sides of the lease protocol use it. Pure."""

from dataclasses import dataclass
from typing import TypeAlias

from authsvc.client.api_key import Digest


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


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """Service to holder: a mutation, and the digests whose verdicts it invalidates."""

    revision: int
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class LeaseEvent:
    """Service to holder: the lease that the keep-alive with this sequence asked for."""

    sequence: int
    duration_seconds: float
    revision: int


@dataclass(frozen=True, slots=True)
class ResetEvent:
    """Service to holder: start afresh from this revision."""

    epoch: str
    revision: int


Event: TypeAlias = ChangeEvent | LeaseEvent | ResetEvent
