"""Bridges: what the watcher and the validator do around the real `Holder` and the real cache, in virtual time.

A host outlives its processes: it is paused, its processes are killed or release the lease,
and the next one starts with a holder id of its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from authsvc.client.api_key import Digest
from authsvc.client.holder import Holder, StreamBrokenError, Verdicts
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdict_cache import CacheLimits, VerdictCache
from authsvc.client.verdicts import Decision, Response
from authsvc.v1 import key_service_pb2 as pb
from tests.simulation.checker import Request
from tests.simulation.network import Pipe
from tests.simulation.schedule import Clock

if TYPE_CHECKING:
    from tests.simulation.replica import Replica
    from tests.simulation.world import World

_BACK_OFF_SECONDS_MAX = 2.0
_CALL_SECONDS_MAX = 2.0
_LATE_SECONDS_MAX = 60.0

MakeHolder: TypeAlias = Callable[[str, str, Verdicts, Clock], Holder]


class RecordingCache(VerdictCache):
    """The real cache, and beside it the version of the state that each verdict in it was read by, for the checker."""

    def __init__(self) -> None:
        super().__init__(CacheLimits(ttl_seconds_max=float("inf"), invalid_ttl_seconds_max=float("inf")))
        self._versions: dict[Digest, dict[str, int]] = {}

    def record(self, digest: Digest, origin: str | None, answer: Response, version: int) -> None:
        """Note what a verdict that is put was read by."""
        if answer.any_origin:
            self._versions[digest] = {"*": version}
        else:
            versions = self._versions.setdefault(digest, {})
            versions.pop("*", None)
            versions[origin or ""] = version

    def version(self, digest: Digest, origin: str | None) -> int:
        """Return what the verdict that `get` returned was read by."""
        versions = self._versions[digest]
        return versions["*"] if "*" in versions else versions[origin or ""]


class Flight:
    """One call of Validate, which requests share."""

    __slots__ = ("epoch", "joined", "sent_at", "starter")

    def __init__(self, starter: Request, epoch: str, sent_at: float) -> None:
        self.starter = starter
        self.joined: list[Request] = []
        self.epoch = epoch
        self.sent_at = sent_at

    def __repr__(self) -> str:
        return f"flight({self.starter.digest!r}, {self.starter.origin})"


class Stream:
    """One Watch stream, both directions."""

    __slots__ = ("down", "last", "number", "process", "replica", "up")

    def __init__(self, process: "Process", replica: "Replica", number: int) -> None:
        world, host = process.world, process.host
        self.process = process
        self.replica = replica
        self.number = number
        self.last: KeepAlive | None = None
        self.up = Pipe(world.schedule, world.network, host.name, replica.name)
        self.down = Pipe(world.schedule, world.network, replica.name, host.name)

    def __repr__(self) -> str:
        return f"{self.process}/{self.number}"

    def ask(self, keep_alive: KeepAlive) -> None:
        """Hand a keep-alive to the transport."""
        self.last = keep_alive
        self.up.send(self.replica.receive, self, keep_alive)

    def come_late(self) -> None:
        """Let what the stream held back when it was given up come after all, now and then."""
        world = self.process.world
        if self.last is not None and not world.network.is_healthy and world.random.random() < 0.5:
            world.schedule.after(world.random.random() * _LATE_SECONDS_MAX, self.replica.receive, self, self.last)

    def push(self, event: pb.WatchResponse) -> None:
        """Send an event to the holder."""
        self.down.send(self.process.take, self.process.hear, self, event)

    def end(self) -> None:
        """End the stream from the service's side; the holder hears of it unless the network is dead."""
        self.down.send(self.process.take, self.process.lose, self)


class Host:
    """The machine of one bridge, with its clock. `process` is the one that runs, if one does."""

    def __init__(self, world: "World", name: str, clock: Clock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.process: Process | None = None
        self.is_paused = False
        self._paused_at = 0.0
        self.backlog: list[tuple[Process, Callable[..., None], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Start a process unless one runs."""
        if self.process is None:
            self.process = self.world.protocol.process(self.world, self)
            self.process.connect()

    def pause(self) -> None:
        """Stop everything here but the clock; messages queue."""
        if not self.is_paused:
            self.is_paused = True
            self._paused_at = self.world.schedule.now

    def resume(self) -> None:
        """Go on: what queued is handled at once, requests before what came with them or after it."""
        world = self.world
        if not self.is_paused:
            return
        self.is_paused = False
        if not world.setting.clock_counts_suspend:
            self.clock.offset -= (world.schedule.now - self._paused_at) * self.clock.rate
        backlog, self.backlog = self.backlog, []
        if world.random.random() < 0.5:
            backlog.sort(key=lambda entry: entry[1].__name__ != "serve")
        for count, (process, action, arguments) in enumerate(backlog):
            world.schedule.after(count * 1e-6, process.take, action, *arguments)

    def kill(self) -> None:
        """End the process without a word."""
        if self.process is not None:
            self.world.unannounced.add(self.process.holder.holder_id)
            self.process.die()

    def deploy(self) -> None:
        """Stop the process as SIGTERM does."""
        if self.process is not None and not self.is_paused:
            if not self.world.is_recovered:
                self.world.unannounced.add(self.process.holder.holder_id)
            self.process.stop()


class Process:
    """One process of a bridge."""

    def __init__(self, world: "World", host: Host) -> None:
        self.world = world
        self.host = host
        self.clock = host.clock
        self.started_at = world.schedule.now
        self.cache = RecordingCache()
        self.holder = self.new_holder()
        self.stream: Stream | None = None
        self.flights: dict[tuple[Digest, str | None], Flight] = {}
        self.is_dead = False
        self._wakes_at = float("inf")

    def __repr__(self) -> str:
        return f"{self.host}[{self.holder.holder_id}]"

    def new_holder_id(self) -> str:
        """Rule 8: an id of its own for each process."""
        return self.world.new_id("holder")

    def new_holder(self) -> Holder:
        """Make this process's holder."""
        return self.world.protocol.holder(self.new_holder_id(), self.host.name, self.cache, self.clock)

    def pick_replica(self) -> "Replica":
        """Return the replica to open a stream to."""
        return self.world.pick_replica()

    def take(self, action: Callable[..., None], *arguments: Any) -> None:
        """Let something happen to this process, or after its pause, or never if it is dead."""
        if self.is_dead:
            return
        if self.host.is_paused:
            self.host.backlog.append((self, action, arguments))
        else:
            action(*arguments)

    # The watcher

    def connect(self) -> None:
        """Open a stream to some replica."""
        if self.stream is not None or self.holder.is_released:
            return
        number, keep_alive = self.holder.open(self.clock())
        self.stream = Stream(self, self.pick_replica(), number)
        self.stream.ask(keep_alive)
        self._arm()
        self.world.stream_opened()

    def hear(self, stream: Stream, event: pb.WatchResponse) -> None:
        """Handle what a stream brought; it may be one that was given up long ago."""
        try:
            must_acknowledge = self.holder.receive(stream.number, event)
        except StreamBrokenError:
            self.lose(stream)
            return
        if must_acknowledge:
            self.renew(stream)
        self._arm()  # the first lease says how often to renew

    def renew(self, stream: Stream) -> None:
        """Acknowledge, and ask for a lease."""
        stream.ask(self.holder.renew(self.clock()))
        self._arm()

    def lose(self, stream: Stream) -> None:
        """Give a stream up, and open another in a while."""
        if self.stream is stream:
            self.stream = None
            stream.come_late()
            self._later(self.world.random.random() * _BACK_OFF_SECONDS_MAX, self.connect)

    def wake(self) -> None:
        """Renew, or give the stream up, when it is time to."""
        self._wakes_at = float("inf")
        if self.stream is None:
            return
        now = self.clock()
        if now >= self.holder.give_up_at():
            self.lose(self.stream)
        elif now >= self.holder.renew_at():
            self.renew(self.stream)
        else:
            self._arm()

    def _arm(self) -> None:
        wakes_at = min(self.holder.renew_at(), self.holder.give_up_at())
        if wakes_at < self._wakes_at:
            self._wakes_at = wakes_at
            self._later(max(0.0, wakes_at - self.clock()) + 1e-6, self.wake)

    def _later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something so much later by this host's clock."""
        self.world.schedule.after(seconds / self.clock.rate, self.take, action, *arguments)

    def stop(self) -> None:
        """Rule 7: release the lease, serve what comes for a moment without a cache, and end."""
        if self.stream is not None and self.world.random.random() < 0.3:  # what an abandoned stream held back
            late = self.holder.renew(self.clock())
            self.world.schedule.after(self.world.random.random() * 2.0, self.stream.replica.receive, self.stream, late)
        stream = self.stream_for_release()
        keep_alive = self.holder.release()
        if stream is not None:
            stream.ask(keep_alive)
        self._later(self.world.random.random(), self.die)

    def stream_for_release(self) -> Stream | None:
        """Return the stream that is open; without one, another for the release alone: keep-alives have been sent."""
        return self.stream or Stream(self, self.pick_replica(), 0)

    def die(self) -> None:
        """End. What is in the network arrives nevertheless."""
        if not self.is_dead:
            self.is_dead = True
            self.host.process = None
            self.host.backlog.clear()

    # The validator

    def is_live(self) -> bool:
        """Rule 2: the clock is read at every use, after the request arrived."""
        return self.holder.is_live(self.clock())

    def serve(self, request: Request) -> None:
        """Decide a request that has arrived: by the cache under a live lease, otherwise by asking."""
        digest, origin = request.digest, request.origin
        if self.is_live():
            decision = self.cache.get(digest, origin, self.clock())
            if decision is not None:
                self.decide(request, decision, self.cache.version(digest, origin))
                return
        flight = self.flights.get((digest, origin))
        if flight is not None:
            flight.joined.append(request)
            return
        flight = self.flights[digest, origin] = Flight(request, self.holder.epoch, self.clock())
        self._call(flight)

    def decide(self, request: Request, decision: Decision, version: int) -> None:
        """Response a request."""
        self.world.checker.decided(request, decision.verdict, version)

    def _call(self, flight: Flight) -> None:
        replica = self.world.pick_replica()
        delay = self.world.network.call(self.host.name, replica.name)
        if delay is None:
            self._later(_CALL_SECONDS_MAX, self.fail, flight)
        else:
            self.world.schedule.after(delay, replica.validate, self, flight)

    def fail(self, flight: Flight) -> None:
        """End a call that had no answer: 503, and nothing is cached."""
        if self.flights.get(_route(flight)) is flight:
            del self.flights[_route(flight)]
            if self.world.is_recovered:
                self.world.checker.undecided(flight.starter)  # those who joined may have joined an old call

    def land(self, flight: Flight, answer: Response, version: int) -> None:
        """Rule 4: the answer decides the request that started the call; the others look again."""
        if self.flights.get(_route(flight)) is not flight:
            return
        del self.flights[_route(flight)]
        if self.may_keep(flight, answer):
            self.keep(flight, answer, version)
        self.decide(flight.starter, answer.decision, version)
        self.share(flight, answer, version)

    def may_keep(self, flight: Flight, answer: Response) -> bool:
        """Rule 4: only an answer that is as new as what was applied, and of this epoch."""
        return self.holder.may_keep(answer.revision, answer.epoch)

    def keep(self, flight: Flight, answer: Response, version: int) -> None:
        """Cache an answer."""
        digest, origin = _route(flight)
        self.cache.put(digest, origin, answer, flight.sent_at)
        self.cache.record(digest, origin, answer, version)

    def share(self, flight: Flight, answer: Response, version: int) -> None:
        """Let those who joined look in the cache again, or call again."""
        for request in flight.joined:
            self.serve(request)


class StopsDuringBackOff(Process):
    """A process whose stream always ends just before it stops."""

    def stop(self) -> None:
        if self.stream is not None:
            self.lose(self.stream)
        super().stop()


def _route(flight: Flight) -> tuple[Digest, str | None]:
    return flight.starter.digest, flight.starter.origin
