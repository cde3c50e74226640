"""Each rule of the protocol, broken: what is left out or done wrongly, and what the checker must find then."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from authsvc.client.api_key import Digest
from authsvc.client.holder import Holder, Verdicts
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdicts import Response
from authsvc.revocation.leases import Propagation, WatchSession
from authsvc.storage.records import LeaseRow, StoreState
from authsvc.v1 import key_service_pb2 as pb
from tests.simulation.bridge import Flight, MakeHolder, Process, StopsDuringBackOff, Stream
from tests.simulation.checker import Kind
from tests.simulation.database import Database, Project, answer_for
from tests.simulation.index import IndexProcess
from tests.simulation.replica import Call, Replica
from tests.simulation.schedule import Clock
from tests.simulation.world import Protocol


class RevisionBeforeCommit(Replica):
    """The revision is read in the transaction that commits the lease."""

    def begin(self, stream: Stream, keep_alive: KeepAlive) -> None:
        database = self.world.database
        self._then(
            self._commit_with, stream, keep_alive, database.expiry(keep_alive.lease_seconds_max), database.state()
        )

    def _commit_with(
        self, run: int, stream: Stream, keep_alive: KeepAlive, expire_time: datetime, state: StoreState
    ) -> None:
        if not self._is_void(run) and self.world.database.renew(keep_alive, expire_time) and not keep_alive.is_release:
            self.answer(stream, keep_alive, state)


class GrantBeforeCommit(Replica):
    """The grant is sent while its lease is being committed."""

    def begin(self, stream: Stream, keep_alive: KeepAlive) -> None:
        if not keep_alive.is_release:
            self.answer(stream, keep_alive, self.world.database.state())
        super().begin(stream, keep_alive)

    def read_state(self, run: int, stream: Stream, keep_alive: KeepAlive) -> None:
        """Do nothing more."""


class CountsFromArrival(Holder):
    """A lease counts from when the grant arrived."""

    def __init__(self, holder_id: str, name: str, verdicts: Verdicts, clock: Clock) -> None:
        super().__init__(holder_id, name, verdicts)
        self._clock = clock

    def _grant(self, lease: pb.LeaseEvent) -> bool:
        if lease.sequence in self._asked_at:
            self._asked_at[lease.sequence] = self._clock()
        return super()._grant(lease)


class LivenessByTimer(Process):
    """A timer says when the lease has ended; after a pause it comes too late."""

    _ended_at = float("-inf")

    def is_live(self) -> bool:
        return self.holder.lease_ends_at > self._ended_at

    def hear(self, stream: Stream, event: pb.WatchResponse) -> None:
        super().hear(stream, event)
        ends_at = self.holder.lease_ends_at
        if ends_at > self.clock():
            self._later(ends_at - self.clock(), self._end, ends_at)

    def _end(self, ends_at: float) -> None:
        self._ended_at = max(self._ended_at, ends_at)


class CountsAtOnce(Holder):
    """A lease counts whether or not the holder is caught up."""

    def _grant(self, lease: pb.LeaseEvent) -> bool:
        return super()._grant(
            pb.LeaseEvent(sequence=lease.sequence, duration=lease.duration, revision=self.applied_revision)
        )


class UnfencedFills(Process):
    """Every answer is cached."""

    def may_keep(self, flight: Flight, answer: Response) -> bool:
        return True


class UnfencedEpoch(Process):
    """An answer is cached though it was asked for in another epoch."""

    def may_keep(self, flight: Flight, answer: Response) -> bool:
        return self.holder.may_keep(answer.revision, self.holder.epoch)


class EpochWhenAsked(Process):
    """An answer is taken to be of the epoch in which it was asked for, whatever it says."""

    def may_keep(self, flight: Flight, answer: Response) -> bool:
        return self.holder.may_keep(answer.revision, flight.epoch)


class IndexWithoutLease(IndexProcess):
    """An index answers whether or not its lease is live."""

    def is_live(self) -> bool:
        return True


class IndexLabelsCurrent(IndexProcess):
    """An index labels its answers with the current revision, which it may not have applied."""

    def label(self) -> int:
        return self.world.database.revision


class UnfencedIndex(IndexProcess):
    """An index keeps whatever was read."""

    def may_fill(self, revision: int, epoch: str) -> bool:
        return not self.holder.is_released


class RevisionAfterVerdict(Replica):
    """Validate reads its revision after its verdict."""

    def reply(self, process: Process, flight: Flight) -> None:
        project, epoch, _, version = self.world.database.lookup(flight.starter.digest)
        self._then(self._reply_with, process, flight, project, epoch, version)

    def _reply_with(
        self, run: int, process: Process, flight: Flight, project: Project | None, epoch: str, version: int
    ) -> None:
        request, revision = flight.starter, self.world.database.revision
        self.respond(process, flight, answer_for(project, request.digest, request.origin, epoch, revision), version)


class SharedAnswer(Process):
    """All who wait for a call use its answer."""

    def share(self, flight: Flight, answer: Response, version: int) -> None:
        for request in flight.joined:
            self.decide(request, answer.decision, version)


class _ValidOnly:
    """A cache whose negative verdicts outlive changes."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts: Any = verdicts

    def drop(self, digest: Digest) -> None:
        self._verdicts._keys.pop(digest, None)

    def clear(self) -> None:
        self._verdicts.clear()


class AcknowledgesFirst(Holder):
    """A change is counted and acknowledged, and invalidates when the next event comes."""

    _late: Iterable[bytes] = ()

    def _apply(self, change: pb.ChangeEvent) -> bool:
        for digest in map(Digest, self._late):
            self._verdicts.drop(digest)
        self._late = change.key_digests
        return super()._apply(pb.ChangeEvent(revision=change.revision))


class CountsNothing(Holder):
    """A change invalidates, and the acknowledgement says nothing of it until the next keep-alive is due."""

    def _apply(self, change: pb.ChangeEvent) -> bool:
        super()._apply(change)
        return False


class KeepsCacheOnReset(Holder):
    """A reset moves on and forgets nothing."""

    def _reset(self, reset: pb.ResetEvent) -> bool:
        verdicts, self._verdicts = self._verdicts, _Nothing()
        try:
            return super()._reset(reset)
        finally:
            self._verdicts = verdicts


class _Nothing:
    def drop(self, digest: Digest) -> None:
        """Keep it."""

    def clear(self) -> None:
        """Keep it all."""


class IgnoresGaps(Holder):
    """A change is applied though the one before it is missing."""

    def _apply(self, change: pb.ChangeEvent) -> bool:
        if change.revision > self.applied_revision + 1:
            self.applied_revision = change.revision - 1
        return super()._apply(change)


class ResetsLower(Holder):
    """A reset may set the applied revision back within an epoch."""

    def _reset(self, reset: pb.ResetEvent) -> bool:
        if reset.epoch == self.epoch:
            self.applied_revision = min(self.applied_revision, reset.revision)
        return super()._reset(reset)


class ResetsFromPoll(Replica):
    """A reset carries what the replica's feed has got to, which may be older than what the holder has applied."""

    def answer(self, stream: Stream, keep_alive: KeepAlive, state: StoreState) -> None:
        session = self.sessions.get(stream)
        if session is None:
            session = self.sessions[stream] = self.world.protocol.session(self.world.setting.lease_seconds)
        for event in session.renewed(keep_alive, replace(state, revision=min(self.known, state.revision))):
            if event.HasField("lease"):
                event.lease.revision = state.revision
            stream.push(event)
        self._push(stream, session)


class SameEpoch(Database):
    """A database that lost commits goes on in its epoch."""

    def next_epoch(self) -> str:
        return self.epoch


class NobodyStandsIn(Database):
    """A database that lost leases with its commits does not wait for them."""

    def stand_in(self) -> None:
        """Do nothing."""


class SendsNothingMissed(WatchSession):
    """A stream begins with the changes from now on, and no reset."""

    def renewed(self, keep_alive: KeepAlive, state: StoreState) -> list[pb.WatchResponse]:
        if self.position is None and keep_alive.epoch == state.epoch:
            self.position = state.revision
        return super().renewed(keep_alive, state)


class NeverGivesUp(Holder):
    """A stream without grants is kept."""

    def give_up_at(self) -> float:
        return float("inf")


class UsesCacheAfterRelease(Holder):
    """Release is said before the cache is given up."""

    def release(self) -> KeepAlive:
        self._sequence += 1
        return KeepAlive(self.epoch, self.holder_id, self.name, self._sequence, self.applied_revision, is_release=True)


class NoRelease(Process):
    """A process just ends."""

    def stop(self) -> None:
        self.die()


class SilentDuringBackOff(StopsDuringBackOff):
    """Without an open stream a process just ends."""

    def stream_for_release(self) -> Stream | None:
        return self.stream


class ComesBackAfterRelease(Database):
    """A late keep-alive is granted though the holder released its lease."""

    def refuses(self, row: LeaseRow) -> bool:
        return False


class SharedHolderId(Process):
    """Processes that were forked share a holder id."""

    def new_holder_id(self) -> str:
        return "forked"


class SequencesPerStream(Holder):
    """Each stream counts from one, and an abandoned stream's messages are taken for the current one's."""

    def open(self, now: float) -> tuple[int, KeepAlive]:
        self._sequence = 0
        return super().open(now)

    def receive(self, stream: int, event: pb.WatchResponse) -> bool:
        return super().receive(self._stream if event.HasField("lease") else stream, event)


class AcknowledgesLower(Database):
    """A late keep-alive sets the acknowledged revision back."""

    def acknowledged(self, row: LeaseRow, keep_alive: KeepAlive) -> tuple[str, int]:
        return keep_alive.epoch, keep_alive.applied_revision


class GoesBackToNoEpoch(Database):
    """A late keep-alive from before the first reset, which acknowledges nothing, replaces what was acknowledged."""

    def acknowledged(self, row: LeaseRow, keep_alive: KeepAlive) -> tuple[str, int]:
        if row.epoch == keep_alive.epoch:
            return super().acknowledged(row, keep_alive)
        return keep_alive.epoch, keep_alive.applied_revision


class RepeatsItself(Process):
    """The network holds a copy of the first keep-alive back for a while, which harms nothing else."""

    def connect(self) -> None:
        super().connect()
        if self.stream is not None and not self.holder.epoch:
            seconds = 30.0 * self.world.random.random()
            self.world.schedule.after(seconds, self.stream.replica.receive, self.stream, self.stream.last)


class ClockBeforeRows(Replica):
    """The clock is read before the leases are."""

    def read_rows(self, run: int, call: Call) -> None:
        if self._is_void(run):
            self.world.call_failed(call)
        else:
            self._then(self._rows_after, call, self.world.database.state())

    def _rows_after(self, run: int, call: Call, state: StoreState) -> None:
        call.read_at = call.read_at or self.world.schedule.now
        if self._is_void(run):
            self.world.call_failed(call)
        else:
            self.check(call, self.world.database.lease_rows(), state)


class EarliestExpiry(Propagation):
    """With several pending, the first lease's end is given."""

    @property
    def effective_by(self) -> datetime:
        return min((row.expire_time for row in self.pending.values()), default=self._time)


class ExtendedByRenewals(Propagation):
    """Keep-alives of a holder that is behind extend what is waited for."""

    def update(self, rows: list[LeaseRow], state: StoreState) -> None:  # type: ignore[override]
        super().update(rows, state)
        self.pending = {row.holder_id: row for row in rows if row.holder_id in self.pending}


class RetryDoesNotWait(Replica):
    """A mutation that finds its work done returns at once."""

    def await_holders(self, call: Call, is_new: bool) -> None:
        if is_new:
            super().await_holders(call, is_new)
        else:
            self.world.call_returned(call, Propagation(call.revision, [], self.world.database.state()))


@dataclass(frozen=True, slots=True)
class Mutation:
    """One way to break one rule."""

    rule: str
    what: str
    expected: Kind
    protocol: Protocol
    first_seed: int = 0
    """Those before it show nothing, so the short form leaves them out. Where that has changed, it takes longer."""


def _valid_only(holder_id: str, name: str, verdicts: Verdicts, clock: Clock) -> Holder:
    return Holder(holder_id, name, _ValidOnly(verdicts))


def _make(kind: type[Holder]) -> MakeHolder:
    return lambda holder_id, name, verdicts, clock: kind(holder_id, name, verdicts)


def _holder(kind: type[Holder]) -> Protocol:
    return Protocol(holder=_make(kind))


_SAFETY, _PROGRESS = Kind.SAFETY, Kind.PROGRESS

MUTATIONS = (
    Mutation("1", "revision read before the lease is committed", _SAFETY, Protocol(replica=RevisionBeforeCommit), 91),
    Mutation("1", "grant sent before the lease is committed", _SAFETY, Protocol(replica=GrantBeforeCommit)),
    Mutation("2", "lease counts from the grant's arrival", _SAFETY, Protocol(holder=CountsFromArrival)),
    Mutation("2", "liveness by a timer", _SAFETY, Protocol(process=LivenessByTimer)),
    Mutation("2", "index answers without a live lease", _SAFETY, Protocol(index=IndexWithoutLease)),
    Mutation("3", "lease counts before the holder caught up", _SAFETY, _holder(CountsAtOnce)),
    Mutation("4", "fills not fenced", _SAFETY, Protocol(process=UnfencedFills)),
    Mutation("4", "fills not fenced by the epoch", _SAFETY, Protocol(process=UnfencedEpoch)),
    Mutation(
        "4", "an index's answer kept in an epoch that is not its own", _SAFETY, Protocol(process=EpochWhenAsked), 295
    ),
    Mutation("4", "index labels with the current revision", _SAFETY, Protocol(index=IndexLabelsCurrent)),
    Mutation("4", "fills of an index not fenced", _SAFETY, Protocol(index=UnfencedIndex)),
    Mutation("4", "revision read after the verdict", _SAFETY, Protocol(replica=RevisionAfterVerdict)),
    Mutation("4", "all who wait use an answer that is not cached", _SAFETY, Protocol(process=SharedAnswer)),
    Mutation("5", "negative verdicts outlive changes", _SAFETY, Protocol(holder=_valid_only)),
    Mutation("5", "acknowledged before invalidated", _SAFETY, _holder(AcknowledgesFirst)),
    Mutation("5", "not acknowledged at once", _PROGRESS, _holder(CountsNothing)),
    Mutation("6", "reset keeps the cache", _SAFETY, _holder(KeepsCacheOnReset)),
    Mutation("6", "gaps ignored", _SAFETY, _holder(IgnoresGaps)),
    # Together: each alone harms nothing, since a holder takes no reset for lower, and the database gives none. The rule
    # has both, and so the promise does not depend on either side.
    Mutation(
        "6",
        "reset from a replica's poll lowers the applied revision",
        _SAFETY,
        Protocol(holder=_make(ResetsLower), replica=ResetsFromPoll),
        50,
    ),
    Mutation("6", "epoch not renewed when commits were lost", _SAFETY, Protocol(database=SameEpoch)),
    Mutation("6", "lost leases not waited for", _SAFETY, Protocol(database=NobodyStandsIn)),
    Mutation("6", "what was missed is not sent", _PROGRESS, Protocol(session=SendsNothingMissed)),
    Mutation("6", "silent stream kept", _PROGRESS, _holder(NeverGivesUp)),
    Mutation("7", "cache used after release", _SAFETY, _holder(UsesCacheAfterRelease)),
    Mutation("7", "no release", _PROGRESS, Protocol(process=NoRelease)),
    Mutation("7", "no release unless a stream is open", _PROGRESS, Protocol(process=SilentDuringBackOff)),
    Mutation("7", "keep-alives after release granted", _PROGRESS, Protocol(database=ComesBackAfterRelease)),
    Mutation("8", "holder id shared by processes", _SAFETY, Protocol(process=SharedHolderId)),
    Mutation("8", "sequences per stream, abandoned streams heard", _SAFETY, _holder(SequencesPerStream), 65),
    Mutation("9", "acknowledged revision goes down", _PROGRESS, Protocol(database=AcknowledgesLower), 84),
    Mutation(
        "9",
        "late keep-alive goes back to no epoch",
        _PROGRESS,
        Protocol(database=GoesBackToNoEpoch, process=RepeatsItself),
        168,
    ),
    Mutation("10", "clock read before the leases", _SAFETY, Protocol(replica=ClockBeforeRows)),
    Mutation("10", "earliest expiry instead of the latest", _SAFETY, Protocol(propagation=EarliestExpiry)),
    Mutation("10", "extended by later keep-alives", _PROGRESS, Protocol(propagation=ExtendedByRenewals)),
    Mutation("11", "retried mutation does not wait", _SAFETY, Protocol(replica=RetryDoesNotWait)),
    Mutation("12", "no margin", _SAFETY, Protocol(margin_factor=0.0)),
    Mutation("12", "drift beyond the margin", _SAFETY, Protocol(drift_factor=3.0)),
    Mutation("12", "holder's clock stands still during suspend", _SAFETY, Protocol(clock_counts_suspend=False)),
)
