"""The simulated world: its parts, the traffic, and the calls. `simulate` runs it; `faults` makes its trouble.

Requests are sent where they hurt: around every commit, and to every bridge in the
moment from which a promise holds.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from authsvc.client.api_key import Digest
from authsvc.client.holder import Holder, Verdicts
from authsvc.revocation.leases import Propagation, WatchSession
from tests.simulation.bridge import Host, MakeHolder, Process
from tests.simulation.checker import Checker, Request
from tests.simulation.database import Database
from tests.simulation.index import IndexProcess
from tests.simulation.network import Network
from tests.simulation.replica import Call, Replica
from tests.simulation.schedule import Clock, Schedule, seconds_of

_ORIGINS: tuple[tuple[str, ...], ...] = ((), ("a",), ("a", "b"))
_REQUEST_ORIGINS = (None, None, "a", "b")
_PROJECTS = 2


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from seed to seed."""

    replicas: int
    hosts: int
    lease_seconds: float
    margin_seconds: float
    drift: float
    """How far the rate of any clock is from 1 at the most."""
    clock_step_seconds: float
    """How far apart steps may bring the database's clock from itself."""
    in_order: bool
    trouble: float
    resumable_changes: int
    clock_counts_suspend: bool
    is_busy: bool
    """There is load enough for the replicas to answer from an index."""

    @property
    def lease_seconds_max(self) -> float:
        """How long a lease can last after its asking, in true time, for those who look at the database's clock."""
        return (self.lease_seconds + self.margin_seconds + self.clock_step_seconds) / (1 - self.drift)


def margin_for(lease_seconds: float, drift: float, clock_step_seconds: float) -> float:
    """Return the least margin that covers a slow clock of a holder, and a fast one of the database that steps."""
    return lease_seconds * ((1 + drift) / (1 - drift) - 1) + clock_step_seconds


def draw_setting(random: Random, protocol: "Protocol") -> Setting:
    """Draw a setting, with the least margin that covers its clocks and a hundredth of a second."""
    lease_seconds = random.choice((2.0, 6.0, 60.0))
    drift = random.choice((0.0, 0.01, 0.03))
    clock_step_seconds = random.choice((0.0, 0.5))
    return Setting(
        replicas=random.randint(1, 3),
        hosts=random.randint(1, 3),
        lease_seconds=lease_seconds,
        margin_seconds=(margin_for(lease_seconds, drift, clock_step_seconds) + 0.01) * protocol.margin_factor,
        drift=drift * protocol.drift_factor,
        clock_step_seconds=clock_step_seconds,
        in_order=random.random() < 0.5,
        trouble=random.choice((0.0, 0.05, 0.2)),
        resumable_changes=random.choice((0, 2, 10_000)),
        clock_counts_suspend=protocol.clock_counts_suspend,
        is_busy=random.random() < 0.5,
    )


def _holder(holder_id: str, name: str, verdicts: Verdicts, clock: Clock) -> Holder:
    return Holder(holder_id, name, verdicts)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What runs in the world. The defaults keep every rule; `mutations` breaks one at a time."""

    holder: MakeHolder = _holder
    session: Callable[[float], WatchSession] = WatchSession
    propagation: type[Propagation] = Propagation
    process: type[Process] = Process
    replica: type[Replica] = Replica
    index: type[IndexProcess] = IndexProcess
    database: type[Database] = Database
    margin_factor: float = 1.0
    drift_factor: float = 1.0
    clock_counts_suspend: bool = True


class World:
    """Everything there is. Its parts reach each other through it."""

    def __init__(self, seed: int, protocol: Protocol) -> None:
        self.schedule = schedule = Schedule(seed)
        self.random = random = schedule.random
        self.protocol = protocol
        self.setting = setting = draw_setting(random, protocol)
        self.network = Network(schedule, setting.in_order)
        self.network.trouble = setting.trouble
        self.database = protocol.database(
            self.make_clock(), setting.lease_seconds, setting.margin_seconds, setting.resumable_changes
        )
        self.checker = Checker(schedule, self.database.clock)
        self.replicas = [protocol.replica(self, f"replica-{number}") for number in range(setting.replicas)]
        self.hosts = [Host(self, f"bridge-{number}", self.make_clock()) for number in range(setting.hosts)]
        self.unannounced: set[str] = set()
        """The holders that ended without a release that can be counted on."""
        self.is_recovered = False
        """All has been well for so long that the protocol must have recovered."""
        self._ids = 0
        self._project_ids = [self.new_id("project") for _ in range(_PROJECTS)]
        self._digests = [deque([self._new_digest()], maxlen=3) for _ in range(_PROJECTS)]
        """Of each project: the keys that requests come with; the last does not exist yet."""

    def __repr__(self) -> str:
        return "world"

    def make_clock(self) -> Clock:
        """Return a clock that is off by a little, or not."""
        rate = 1 + self.setting.drift * self.random.choice((-1.0, -1.0, 0.0, 1.0, 1.0))
        return Clock(self.schedule, rate, 1000.0)

    def new_id(self, kind: str) -> str:
        """Return an id that never was."""
        self._ids += 1
        return f"{kind}-{self._ids}"

    def _new_digest(self) -> Digest:
        return Digest(self.new_id("key").encode())

    def pick_replica(self) -> Replica:
        """Return whichever replica a load balancer would."""
        return self.random.choice(self.replicas)

    # Traffic

    def request_some(self) -> None:
        """Send a request with some key to some bridge, now and then again."""
        host = self.random.choice(self.hosts)
        self._request(host, self.random.choice(self.random.choice(self._digests)))
        # What indexes do among themselves thins the traffic out.
        self.schedule.after(self.random.expovariate(10.0 if self.setting.is_busy else 6.0), self.request_some)

    def _request(self, host: Host, digest: Digest) -> None:
        process = host.process
        if process is not None:
            origin = self.random.choice(_REQUEST_ORIGINS)
            is_excusable = not self.is_recovered or self.schedule.now - process.started_at < 3.0
            request = Request(digest, origin, self.schedule.now, is_excusable)
            process.take(process.serve, request)

    def probe(self, digests: tuple[Digest, ...]) -> None:
        """Send requests with these keys to every bridge."""
        for host in self.hosts:
            for digest in digests:
                self._request(host, digest)

    def _refill(self, digests: tuple[Digest, ...]) -> None:
        """Let some bridges ask anew while a change is made: that is when old answers come late."""
        for host in self.hosts:
            if host.process is not None and self.random.random() < 0.5:
                for digest in digests:
                    if self.random.random() < 0.7:
                        host.process.cache.drop(digest)
                        self._request(host, digest)

    # Calls

    def call_some(self) -> None:
        """Make a call about some project, now and then again."""
        self.call_once()
        self.schedule.after(self.random.expovariate(0.7), self.call_some)

    def stream_opened(self) -> None:
        """Make a call while a holder comes back, now and then."""
        if self.random.random() < 0.3:
            self.schedule.after(self.network.delay(), self.call_once)

    def call_once(self) -> None:
        """Make a call about some project."""
        slot = self.random.randrange(_PROJECTS)
        digests = self._digests[slot]
        project = self.database.projects.get(self._project_ids[slot])
        chance = self.random.random()
        if project is None or chance < 0.1:
            self._project_ids[slot] = self.new_id("project")
            self._start(slot, "issue", digests[-1], digests[-1])
            digests.append(self._new_digest())
        elif chance < 0.3:
            self._start(slot, "set_origins", project.active, project.active)
        else:
            self._start(slot, "revoke", project.active, digests[-1])
            digests.append(self._new_digest())

    def active_digests(self) -> tuple[Digest, ...]:
        """Return the keys that are active, which may not be so for long."""
        return tuple(project.active for project in self.database.projects.values())[-_PROJECTS:]

    def refill_all(self) -> None:
        """Let every bridge ask anew for every active key."""
        for host in self.hosts:
            if host.process is not None:
                host.process.cache.clear()
        self.probe(self.active_digests())

    def _start(self, slot: int, kind: str, digest: Digest, next_digest: Digest) -> None:
        call = Call(
            kind,
            self._project_ids[slot],
            digest,
            next_digest,
            wait_seconds=2.0 if self.is_recovered else self.random.choice((0.0, 0.2, 2.0)),
            must_be_prompt=self.is_recovered,
            started_at=self.schedule.now,
            origins=self.random.choice(_ORIGINS),
        )
        self._send(call)
        if kind == "revoke" and self.random.random() < 0.4:
            self.schedule.after(self.random.random() * 2.0, self.retry, call)

    def _send(self, call: Call) -> None:
        digests = tuple({call.digest: None, call.next_digest: None})
        for delay in (0.0, self.network.delay(), self.network.delay()):
            self.schedule.after(delay, self._refill, digests)
        self.schedule.after(self.network.delay(), self.pick_replica().mutate, call)

    def retry(self, call: Call) -> None:
        """Call again, with the same key."""
        self._send(
            Call(
                call.kind,
                call.project_id,
                call.digest,
                call.next_digest,
                2.0,
                self.is_recovered,
                self.schedule.now,
                call.origins,
            )
        )

    def call_failed(self, call: Call) -> None:
        """Handle a call that broke off: the caller does not know whether it did anything."""
        if call.kind == "revoke":
            self.schedule.after(self.random.random(), self.retry, call)

    def apply(self, call: Call) -> bool | None:
        """Commit what a call asks for; return whether that was new, None when there is no such project."""
        database = self.database
        if call.kind == "issue":
            digests = database.issue(call.project_id, call.digest)
        elif call.kind == "set_origins":
            digests = database.set_origins(call.project_id, call.origins)
        else:
            digests = database.revoke(call.project_id, call.digest, call.next_digest)
        if digests and call.kind == "revoke":
            self.checker.revoked(call.digest)
        if not digests:
            if call.project_id not in database.projects or call.digest not in database.project_ids:
                return None
            call.versions = {call.digest: database.versions[call.digest]}
            call.revision = database.revision
            return False
        call.versions = {digest: database.versions[digest] for digest in digests}
        call.revision = database.revision
        for replica in self.replicas:
            self.schedule.after(self._notification_delay(), replica.feed)
        return True

    def _notification_delay(self) -> float:
        """Return how long a replica takes to hear of a change: notified, or polling when that is lost."""
        if self.random.random() < 0.8:
            return self.network.delay()
        return self.random.random() * (0.25 if self.network.is_healthy else 5.0)

    def call_returned(self, call: Call, propagation: Propagation) -> None:
        """Take the service at its word."""
        schedule = self.schedule
        effective_by = propagation.effective_by
        schedule.note(f"{call!r} returns", call.revision, propagation.is_effective, effective_by)
        if not self.database.lost_versions.isdisjoint(call.versions.values()):
            return  # what was promised of commits that are lost is void
        self.checker.promise(call.versions, effective_by)
        digests = tuple(call.versions)
        wait = self.database.clock.true_time(seconds_of(effective_by)) - schedule.now
        for delay in (1e-5, 0.05 * self.random.random(), self.random.random()):
            schedule.after(max(0.0, wait) + delay, self.probe, digests)
        project = self.database.projects.get(call.project_id)
        if propagation.is_effective and project is not None:
            active = project.active
            if call.versions.get(active) == self.database.versions[active]:
                self.checker.issued(active)
        if call.must_be_prompt and self.is_recovered:
            excused = self.unannounced | self.database.lost
            waited_for = [holder_id for holder_id in propagation.pending if holder_id not in excused]
            if waited_for:
                self.checker.stalled(f"{call!r} still waits for {waited_for} though all is well")
        latest = call.read_at + self.setting.lease_seconds_max + 0.001
        if not propagation.is_effective and schedule.now + wait > latest:
            self.checker.stalled(f"{call!r} holds later than the longest lease after it")
