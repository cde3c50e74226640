"""Replicas of the key service: what its gRPC and SQL do around the real `WatchSession` and `Propagation`.

Every statement is a step of its own, so that anything can happen between two of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from authsvc.client.api_key import Digest
from authsvc.client.lease_messages import KeepAlive
from authsvc.revocation.leases import Propagation, WatchSession
from authsvc.storage.records import LeaseRow, StoreState
from tests.simulation.bridge import Flight, Host, Process, Stream
from tests.simulation.database import answer_for
from tests.simulation.index import IndexProcess

if TYPE_CHECKING:
    from tests.simulation.world import World

_POLL_SECONDS = 0.25


@dataclass(slots=True, eq=False)
class Call:
    """An operator's call of Issue, Revoke or SetOrigins."""

    kind: str
    project_id: str
    digest: Digest
    next_digest: Digest
    wait_seconds: float
    must_be_prompt: bool
    """All is well: nobody who is alive, or released its lease, may be pending at the end."""
    started_at: float
    origins: tuple[str, ...] = ()
    ends_at: float = 0.0
    read_at: float = 0.0
    """When the leases were first read: no keep-alive after that counts."""
    versions: dict[Digest, int] = field(default_factory=dict)
    revision: int = 0
    propagation: Propagation | None = None

    def __repr__(self) -> str:
        return f"{self.kind}({self.digest!r})"


class Replica:
    """One process of the key service. `run` counts its starts: what an earlier one began is void."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.run = 0
        self.is_up = True
        self.sessions: dict[Stream, WatchSession] = {}
        self.known = 0
        """The revision that the change feed has got to."""
        self.slow_until = 0.0
        self.stalled_until = 0.0
        self.index_host = Host(world, f"{name}-index", world.make_clock())
        self.index: IndexProcess | None = None

    def __repr__(self) -> str:
        return self.name

    def crash(self) -> None:
        """End at once: streams and calls are lost, statements under way may still be committed."""
        if not self.is_up:
            return
        self.is_up = False
        self.run += 1
        if self.index is not None:
            self.world.unannounced.add(self.index.holder.holder_id)
            self.end_index()
        for stream in self.sessions:
            if self.world.random.random() < 0.7:
                stream.end()
            stream.up.is_dead = stream.down.is_dead = True
        self.sessions.clear()

    def start(self) -> None:
        """Start again."""
        if not self.is_up:
            self.is_up = True
            self.known = 0
            self.feed()
            self.begin_index()

    # The index

    def begin_index(self) -> None:
        """Hold a lease: there is load."""
        if self.is_up and self.index is None and self.world.setting.is_busy:
            self.index = self.index_host.process = self.world.protocol.index(self.index_host, self)
            self.index.connect()

    def retire_index(self) -> None:
        """Release the lease: there is no load for a while."""
        if self.index is not None and not self.index_host.is_paused:
            if not self.world.is_recovered:
                self.world.unannounced.add(self.index.holder.holder_id)
            self.index.stop()
            self.index = None

    def end_index(self) -> None:
        """End without a word."""
        if self.index is not None:
            self.index_host.resume()
            self.index.die()
            self.index = None

    def _then(self, action: Callable[..., None], *arguments: Any) -> None:
        """Take the next step of what is under way, a statement later."""
        delay = self.world.network.delay()
        if self.slow_until > self.world.schedule.now:
            delay += self.world.random.random()
        self.world.schedule.after(delay, action, self.run, *arguments)

    def _is_void(self, run: int) -> bool:
        return run != self.run

    # Watch

    def receive(self, stream: Stream, keep_alive: KeepAlive) -> None:
        """Begin to answer a keep-alive; messages of a stream are handled side by side, which is harder than in turn."""
        if not self.is_up:
            stream.end()
            return
        self.begin(stream, keep_alive)

    def begin(self, stream: Stream, keep_alive: KeepAlive) -> None:
        """Take the first step: the statement reads the clock, and its row is seen when it is committed."""
        expire_time = self.world.database.expiry(keep_alive.lease_seconds_max)
        self._then(self.commit_lease, stream, keep_alive, expire_time)

    def commit_lease(self, run: int, stream: Stream, keep_alive: KeepAlive, expire_time: datetime) -> None:
        """Rule 1: commit the lease, and read the revision in a later transaction."""
        if self._is_void(run) and self.world.random.random() < 0.5:
            return
        is_granted = self.world.database.renew(keep_alive, expire_time)
        if self._is_void(run):
            return
        if is_granted and not keep_alive.is_release:
            self._then(self.read_state, stream, keep_alive)
        else:
            self.sessions.pop(stream, None)
            stream.end()

    def read_state(self, run: int, stream: Stream, keep_alive: KeepAlive) -> None:
        """Read the state and answer by it."""
        if not self._is_void(run):
            self.answer(stream, keep_alive, self.world.database.state())

    def answer(self, stream: Stream, keep_alive: KeepAlive, state: StoreState) -> None:
        """Send what the session gives."""
        session = self.sessions.get(stream)
        if session is None:
            session = self.sessions[stream] = self.world.protocol.session(self.world.setting.lease_seconds)
        for event in session.renewed(keep_alive, state):
            stream.push(event)
        self._push(stream, session)

    def feed(self) -> None:
        """Read the changes there are, after a notification or when it is time to poll."""
        if not self.is_up or self.world.schedule.now < self.stalled_until:
            return
        self.known = self.world.database.revision
        for stream, session in list(self.sessions.items()):
            self._push(stream, session)

    def _push(self, stream: Stream, session: WatchSession) -> None:
        if session.position is not None and session.position < self.known:
            for event in session.changed(self.world.database.changes[session.position : self.known]):
                stream.push(event)

    # Validate

    def validate(self, process: Process, flight: Flight) -> None:
        """Response from the index, or read the verdict."""
        if not self.is_up:
            self.world.schedule.after(0.01, process.take, process.fail, flight)
            return
        request = flight.starter
        answer = None if self.index is None else self.index.recall(request.digest, request.origin)
        if answer is None:
            self.reply(process, flight)
        else:
            self.respond(process, flight, *answer)

    def reply(self, process: Process, flight: Flight) -> None:
        """Rule 4: the revision is read in the same snapshot as the verdict."""
        request = flight.starter
        project, epoch, revision, version = self.world.database.lookup(request.digest)
        if self.index is not None:  # it hears of what was read a little later
            delay = self.world.network.delay()
            self.world.schedule.after(
                delay, self.index.take, self.index.fill, request.digest, project, epoch, revision, version
            )
        answer = answer_for(project, request.digest, request.origin, epoch, revision)
        self.respond(process, flight, answer, version)

    def respond(self, process: Process, flight: Flight, *answer: Any) -> None:
        """Send an answer."""
        delay = self.world.network.answer(self.name, process.host.name)
        if delay is None:
            self.world.schedule.after(2.0, process.take, process.fail, flight)
        else:
            self.world.schedule.after(delay, process.take, process.land, flight, *answer)

    # Issue, Revoke and SetOrigins

    def mutate(self, call: Call) -> None:
        """Begin a call."""
        if self.is_up:
            call.ends_at = self.world.schedule.now + call.wait_seconds
            self._then(self.commit, call)
        else:
            self.world.call_failed(call)

    def commit(self, run: int, call: Call) -> None:
        """Commit the mutation, or find it done: then nothing is committed and the current revision counts (rule 11)."""
        if self._is_void(run) and self.world.random.random() < 0.5:
            self.world.call_failed(call)
            return
        is_new = self.world.apply(call)
        if self._is_void(run):
            self.world.call_failed(call)
        elif is_new is not None:
            self.await_holders(call, is_new)

    def await_holders(self, call: Call, is_new: bool) -> None:
        """Begin to wait."""
        self._then(self.read_rows, call)

    def read_rows(self, run: int, call: Call) -> None:
        """Rule 10: read the rows first ..."""
        if self._is_void(run):
            self.world.call_failed(call)
        else:
            call.read_at = call.read_at or self.world.schedule.now
            self._then(self.read_clock, call, self.world.database.lease_rows())

    def read_clock(self, run: int, call: Call, rows: list[LeaseRow]) -> None:
        """... and then the clock, and make up one's mind."""
        if self._is_void(run):
            self.world.call_failed(call)
        else:
            self.check(call, rows, self.world.database.state())

    def check(self, call: Call, rows: list[LeaseRow], state: StoreState) -> None:
        """Return, or look again in a while."""
        if call.propagation is None:
            call.propagation = self.world.protocol.propagation(call.revision, rows, state)
        else:
            call.propagation.update(rows, state)
        if call.propagation.is_effective or self.world.schedule.now >= call.ends_at:
            self.world.call_returned(call, call.propagation)
        else:
            self.world.schedule.after(_POLL_SECONDS * self.world.random.random() ** 0.5, self.read_rows, self.run, call)
