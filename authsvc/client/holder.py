"""The holder's side of the lease protocol: when a cached verdict may be used, and when a response may be kept. Pure.

The time comes in, in seconds of a monotonic clock that also counts while the machine is suspended. The rules are those
of docs/watch-protocol.md, by number.
"""

from typing import Protocol

from authsvc.client.api_key import Digest
from authsvc.client.lease_messages import KeepAlive
from authsvc.v1 import key_service_pb2 as pb2

KEEP_ALIVE_SECONDS_MAX = 10.0
"""Between two keep-alives while nothing changes."""
KEEP_ALIVES_PER_LEASE_MIN = 3
"""Several fit into a lease, however short, so that a lost one costs nothing."""
RESPONSE_SECONDS_MAX = 5.0
"""Without a lease so long after asking, the stream is given up: it may be half open."""

_NEVER = float("-inf")


class StreamBrokenError(Exception):
    """The stream skipped a change, or brought what is not known here: it must be opened anew."""


class Verdicts(Protocol):
    """What a holder invalidates."""

    def drop(self, digest: Digest) -> None:
        """Forget what is cached under a digest, valid or invalid."""

    def clear(self) -> None:
        """Forget everything."""


class Holder:
    """One process that caches verdicts. Its id is random, made at its start, and never used again (rule 8)."""

    def __init__(self, holder_id: str, name: str, verdicts: Verdicts, lease_seconds_max: float = float("inf")) -> None:
        """`name` is a label for people; `verdicts` is what changes invalidate."""
        self.holder_id = holder_id
        self.name = name
        self.epoch = ""
        self.applied_revision = 0
        self.lease_ends_at = _NEVER
        self.is_released = False
        self._verdicts = verdicts
        self._lease_seconds_max = lease_seconds_max
        self._stream = 0
        self._sequence = 0
        self._asked_at: dict[int, float] = {}
        """When each keep-alive whose lease does not count yet was handed to the transport, oldest first."""
        self._last_asked_at = _NEVER
        self._renew_seconds = KEEP_ALIVE_SECONDS_MAX
        self._early: list[pb2.LeaseEvent] = []
        """Leases that do not count yet."""

    def is_live(self, now: float) -> bool:
        """Whether cached verdicts may be used at `now`, which was read after the request arrived (rule 2)."""
        return now < self.lease_ends_at

    def may_keep(self, revision: int, epoch: str) -> bool:
        """Whether a response that was read at `revision` of `epoch` may be cached.

        Rule 4, fenced fills: none from before a change that was applied, nor from another epoch, whose revisions say
        nothing of this one's.
        """
        return revision >= self.applied_revision and epoch == self.epoch and not self.is_released

    def open(self, now: float) -> tuple[int, KeepAlive]:
        """Begin a new stream; return its number, for `receive`, and what to send first. The lease stays (rule 6)."""
        self._stream += 1
        self._asked_at.clear()
        self._early.clear()
        return self._stream, self.renew(now)

    def renew(self, now: float) -> KeepAlive:
        """Return what to send. Rule 2: `now` was read before the transport gets it, and the lease counts from then."""
        self._sequence += 1  # rule 8: unique within the holder, not within the stream
        self._asked_at[self._sequence] = self._last_asked_at = now
        return self._keep_alive()

    def release(self) -> KeepAlive:
        """Return what to send last. Rule 7: first the cache is given up for good, then the service is told."""
        self.is_released = True
        self.forget()
        self._sequence += 1
        return self._keep_alive(is_release=True)

    def forget(self) -> None:
        """Give up all that is cached, and the lease: the service refuses it, since its database has lost changes."""
        self._verdicts.clear()
        self._forget_leases()

    def receive(self, stream: int, event: pb2.WatchResponse) -> bool:
        """Apply what a stream brought; return whether to renew at once; raise StreamBrokenError."""
        if stream != self._stream or self.is_released:
            return False  # rules 8 and 7
        match event.WhichOneof("event"):
            case "change":
                return self._apply(event.change)
            case "lease":
                return self._grant(event.lease)
            case "reset":
                return self._reset(event.reset)
            case unknown:
                raise StreamBrokenError(f"the key service sent an event that is not known here: {unknown}")

    @property
    def unanswered(self) -> int:
        """How many keep-alives wait for their lease."""
        return len(self._asked_at)

    def renew_at(self) -> float:
        """Return when the next keep-alive is due on a stream where nothing happens."""
        return self._last_asked_at + self._renew_seconds

    def give_up_at(self) -> float:
        """Return when to give the stream up, unless a lease comes first, and the changes up to it (rule 6)."""
        oldest = next(iter(self._asked_at.values()), None)
        return float("inf") if oldest is None else oldest + RESPONSE_SECONDS_MAX

    def _keep_alive(self, *, is_release: bool = False) -> KeepAlive:
        return KeepAlive(
            self.epoch,
            self.holder_id,
            self.name,
            self._sequence,
            self.applied_revision,
            is_release,
            self._lease_seconds_max,
        )

    def _apply(self, change: pb2.ChangeEvent) -> bool:
        if change.revision <= self.applied_revision:
            return False  # rule 6: an old one, come again
        if change.revision != self.applied_revision + 1:
            raise StreamBrokenError(f"change {change.revision} came after {self.applied_revision}")
        for digest in map(Digest, change.key_digests):  # rule 5: invalidate, then count, then acknowledge
            self._verdicts.drop(digest)
        self.applied_revision = change.revision
        self._count_early_leases()
        return True

    def _grant(self, lease: pb2.LeaseEvent) -> bool:
        self._renew_seconds = min(KEEP_ALIVE_SECONDS_MAX, _seconds(lease) / KEEP_ALIVES_PER_LEASE_MIN)
        self._early.append(lease)
        self._count_early_leases()
        return False

    def _count_early_leases(self) -> None:
        """Rule 3: a lease counts once every change up to its revision is applied. Rule 2: from when it was asked."""
        counted = [lease for lease in self._early if lease.revision <= self.applied_revision]
        for lease in counted:
            asked_at = self._asked_at.get(lease.sequence)
            if asked_at is not None:
                self.lease_ends_at = max(self.lease_ends_at, asked_at + _seconds(lease))
                for sequence in [asked for asked in self._asked_at if asked <= lease.sequence]:
                    del self._asked_at[sequence]
        if counted:
            self._early = [lease for lease in self._early if lease.revision > self.applied_revision]

    def _reset(self, reset: pb2.ResetEvent) -> bool:
        self._verdicts.clear()
        if reset.epoch == self.epoch:
            self.applied_revision = max(self.applied_revision, reset.revision)  # rule 6: never lower
            self._count_early_leases()
        else:  # the service's database may have lost commits, and our lease's row with them
            self.epoch = reset.epoch
            self.applied_revision = reset.revision
            self._forget_leases()
        return True

    def _forget_leases(self) -> None:
        self.lease_ends_at = _NEVER
        self._asked_at.clear()
        self._early.clear()


def _seconds(lease: pb2.LeaseEvent) -> float:
    return lease.duration.ToTimedelta().total_seconds()
