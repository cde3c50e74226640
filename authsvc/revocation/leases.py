"""The service's side of the lease protocol: what a stream is sent, and by when a change holds everywhere. Pure.

The rules are those of docs/watch-protocol.md, by number; those that are the database's to keep are in `lease_store`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from heapq import nlargest

from authsvc.client.lease_messages import KeepAlive
from authsvc.storage.records import LeaseRow, StoreState
from authsvc.v1 import key_service_pb2 as pb

CHANGE_AGE_SECONDS_MAX = 3600.0
"""A holder whose next change is older is reset (rule 6): its verdicts have expired long ago."""


class WatchSession:
    """One stream: what its holder has been sent, and what it is sent next."""

    def __init__(self, lease_seconds: float) -> None:
        """`lease_seconds` is the leases' duration, without the margin."""
        self.position: int | None = None
        """The revision of the last change that was sent, or need not be; None until the first keep-alive."""
        self._lease_seconds = lease_seconds

    def renewed(self, keep_alive: KeepAlive, state: StoreState) -> list[pb.WatchResponse]:
        """Return the response to a keep-alive whose lease is committed. Rule 1: `state` was read after that commit."""
        events: list[pb.WatchResponse] = []
        can_resume = (
            keep_alive.epoch == state.epoch
            and state.resumable_revision <= keep_alive.applied_revision <= state.revision
        )
        if self.position is None and can_resume:
            self.position = keep_alive.applied_revision
        elif self.position is None or keep_alive.epoch != state.epoch:
            reset = pb.ResetEvent(epoch=state.epoch, revision=state.revision)  # rule 6: not from the feed
            events.append(pb.WatchResponse(reset=reset))
            self.position = state.revision
        lease = pb.LeaseEvent(sequence=keep_alive.sequence, revision=state.revision)
        lease.duration.FromTimedelta(timedelta(seconds=min(self._lease_seconds, keep_alive.lease_seconds_max)))
        events.append(pb.WatchResponse(lease=lease))
        return events

    def changed(self, changes: Iterable[pb.WatchResponse]) -> list[pb.WatchResponse]:
        """Return those of the changes that come next; the caller gives them from `position` on, without a gap."""
        if self.position is None:
            return []
        events: list[pb.WatchResponse] = []
        for event in changes:
            if event.change.revision == self.position + 1:
                events.append(event)
                self.position += 1
        return events


class Propagation:
    """By when a committed change holds everywhere (rule 10)."""

    def __init__(self, revision: int, rows: Sequence[LeaseRow], state: StoreState) -> None:
        """`rows` and `state` were read after the commit of `revision`, in one statement or the rows first."""
        self.revision = revision
        self._epoch = state.epoch
        self.pending = {row.holder_id: row for row in rows if row.is_behind(state, revision)}
        """As of the commit: later keep-alives cannot extend what a holder that is behind may use, by rule 3."""
        self.confirmed = {row.holder_id: row for row in rows if _has_confirmed(row, state, revision)}
        self._time = state.time

    def update(self, rows: Sequence[LeaseRow], state: StoreState) -> None:
        """Take note of what the leases are now."""
        found = {row.holder_id: row for row in rows}
        for holder_id, row in list(self.pending.items()):
            current = found.get(holder_id)
            # A row is swept long after it expired, or was lost with an epoch; and what was pending expires when it did
            # as of the commit.
            has_left = state.epoch == self._epoch if current is None else not current.is_behind(state, self.revision)
            if has_left or row.expire_time <= state.time:
                del self.pending[holder_id]
                if current is not None and _has_confirmed(current, state, self.revision):
                    self.confirmed[holder_id] = current
        self._time = state.time

    @property
    def is_effective(self) -> bool:
        """Whether nothing is pending."""
        return not self.pending

    def named(self, count_max: int) -> list[LeaseRow]:
        """Return pending holders: first those that have confirmed a change before, the last to expire first."""
        return nlargest(
            count_max, self.pending.values(), key=lambda row: (row.has_confirmed(self._epoch), row.expire_time)
        )

    @property
    def effective_by(self) -> datetime:
        """The instant, by the database's clock: read after the last check, or the latest expiry that is pending."""
        return max((row.expire_time for row in self.pending.values()), default=self._time)


def _has_confirmed(row: LeaseRow, state: StoreState, revision: int) -> bool:
    return not row.is_released and row.expire_time > state.time and not row.is_behind(state, revision)
