"""What goes wrong: minutes of trouble, then a calm in which the protocol must recover, and so on."""

from tests.simulation.bridge import Host
from tests.simulation.world import World

RECOVERY_SECONDS = 19.0
"""From the end of all trouble until every bridge has a lease: at most 10 s until it renews over a stream that died, 5 s
until it gives that up, 2 s of back-off, and the clocks' drift."""

_CALM_SECONDS = RECOVERY_SECONDS + 14.0


class Trouble:
    """Plans the faults of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = (
            self._pause,
            self._pause,
            self._kill,
            self._deploy,
            self._cut,
            self._cut,
            self._isolate,
            self._half_open,
            self._half_open,
            self._break,
            self._crash_replica,
            self._slow_replica,
            self._stall_feed,
            self._step_clock,
            self._congest,
            self._restore,
            self._retire_index,
            self._pause_index,
        )
        """Those that are to be more frequent are repeated."""

    def __repr__(self) -> str:
        return "trouble"

    def begin(self) -> None:
        """Start everything, and the first storm."""
        world = self._world
        for host in world.hosts:
            host.start()
        for replica in world.replicas:
            replica.begin_index()
        world.request_some()
        world.call_some()
        self.storm()

    def storm(self) -> None:
        """Let things go wrong for a while."""
        world = self._world
        world.is_recovered = False
        world.network.is_healthy = False
        world.schedule.after(world.random.uniform(20.0, 90.0), self.calm)
        self.strike()

    def strike(self) -> None:
        """Let one thing go wrong, and soon another, while the storm lasts."""
        world = self._world
        if world.network.is_healthy:
            return
        world.random.choice(self._faults)()
        world.schedule.after(world.random.expovariate(0.6), self.strike)

    def calm(self) -> None:
        """End all trouble. Streams that died stay dead, and what was delayed may still come."""
        world = self._world
        world.network.heal()
        for replica in world.replicas:
            replica.slow_until = replica.stalled_until = 0.0
            replica.start()
            replica.index_host.resume()
            replica.begin_index()
            world.schedule.after(world.random.random() * 0.25, replica.feed)
        for host in world.hosts:
            host.resume()
            host.start()
        world.schedule.after(RECOVERY_SECONDS, self.expect_recovery)
        world.schedule.after(_CALM_SECONDS, self.storm)

    def expect_recovery(self) -> None:
        """Check the leases, from now on until the calm ends, and stop and start bridges as a deployment does."""
        world = self._world
        world.is_recovered = True
        self.check_leases()
        for count, host in enumerate(world.hosts):
            if world.random.random() < 0.5:
                world.schedule.after(1.0 + count * 2.0, self.deploy, host)

    def check_leases(self) -> None:
        """Check that every bridge that has run for a while has a lease."""
        world = self._world
        if not world.is_recovered:
            return
        for host in [*world.hosts, *(replica.index_host for replica in world.replicas)]:
            process = host.process
            if (
                process is not None
                and world.schedule.now - process.started_at > 3.0
                and not process.holder.is_released
                and not process.holder.is_live(host.clock())
            ):
                world.checker.stalled(f"{process} has no lease though all is well")
        world.schedule.after(1.0, self.check_leases)

    def deploy(self, host: Host) -> None:
        """Stop a bridge as SIGTERM does, and start it again."""
        host.deploy()
        self._world.schedule.after(1.5, host.start)

    def _host(self) -> Host:
        return self._world.random.choice(self._world.hosts)

    def _pause(self) -> None:
        host, world = self._host(), self._world
        host.pause()
        seconds = world.random.choice((0.5, 4.0, world.setting.lease_seconds_max * 1.5)) * world.random.random()
        world.schedule.after(seconds, host.resume)

    def _kill(self) -> None:
        host = self._host()
        host.resume()
        host.kill()
        self._world.schedule.after(self._world.random.random() * 10.0, host.start)

    def _deploy(self) -> None:
        self.deploy(self._host())

    def _cut(self) -> None:
        world = self._world
        ends = [self._host().name, world.pick_replica().name]
        world.random.shuffle(ends)
        world.network.cut(ends[0], ends[1], world.random.uniform(0.5, 40.0))

    def _isolate(self) -> None:
        host, world = self._host(), self._world
        seconds = world.random.uniform(1.0, 60.0)
        both_ways = world.random.random() < 0.5
        for replica in world.replicas:
            world.network.cut(replica.name, host.name, seconds)
            if both_ways:
                world.network.cut(host.name, replica.name, seconds)

    def _half_open(self) -> None:
        process = self._host().process
        if process is not None and process.stream is not None:
            stream = process.stream
            self._world.random.choice((stream.up, stream.down)).is_dead = True

    def _break(self) -> None:
        process = self._host().process
        if process is not None and process.stream is not None:
            process.take(process.lose, process.stream)

    def _crash_replica(self) -> None:
        replica = self._world.pick_replica()
        replica.crash()
        self._world.schedule.after(self._world.random.random() * 5.0, replica.start)

    def _slow_replica(self) -> None:
        self._world.pick_replica().slow_until = self._world.schedule.now + self._world.random.random() * 20.0

    def _retire_index(self) -> None:
        replica, world = self._world.pick_replica(), self._world
        replica.retire_index()
        world.schedule.after(world.random.random() * 4.0, replica.begin_index)

    def _pause_index(self) -> None:
        """Let an index hear of nothing for a while, though it is asked."""
        host, world = self._world.pick_replica().index_host, self._world
        host.pause()
        world.schedule.after(world.random.random() * 8.0, host.resume)

    def _step_clock(self) -> None:
        world = self._world
        world.database.clock.offset = 1000.0 + world.random.random() * world.setting.clock_step_seconds
        world.checker.clock_moved()

    def _congest(self) -> None:
        world = self._world
        self._ask_slowly()
        world.schedule.after(world.random.random(), world.call_once)

    def _stall_feed(self) -> None:
        """Let a replica hear of nothing, and holders come back to it that know more, while old answers arrive."""
        world = self._world
        digests = world.active_digests()
        replica = world.pick_replica()
        replica.stalled_until = world.schedule.now + 6.0
        world.schedule.after(6.0, replica.feed)
        self._ask_slowly()
        for seconds in (0.1, 0.5, 1.0, 2.0):
            world.schedule.after(seconds * world.random.random(), world.call_once)
        for host in world.hosts:
            if host.process is not None and host.process.stream is not None:
                lose = (host.process.lose, host.process.stream)
                world.schedule.after(0.3 + world.random.random(), host.process.take, *lose)
        for count in range(8):
            world.schedule.after(1.0 + 0.5 * count, world.probe, digests)

    def _restore(self) -> None:
        """Lose a few commits, with the answers still on their way that were read by them."""
        world = self._world
        if world.setting.lease_seconds < 10.0 or world.random.random() < 0.1:  # no promise holds for a lease
            world.database.back_up()
            for _ in range(8):
                world.schedule.after(world.random.random(), world.call_once)
            world.schedule.after(2.0, self._ask_slowly)
            world.schedule.after(2.05, self._lose_commits)
            for _ in range(2):
                world.schedule.after(world.random.uniform(2.1, 4.0), world.call_once)

    def _ask_slowly(self) -> None:
        self._world.network.congest(0.1)
        self._world.refill_all()

    def _lose_commits(self) -> None:
        world = self._world
        kept_version = world.database.restore()
        if kept_version is not None:
            world.checker.restored(kept_version)
            for replica in world.replicas:
                replica.feed()
