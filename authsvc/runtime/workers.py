"""Several processes of one service on one port: their parent, and what a worker has of it.

Both command lines use it when `…_WORKERS` is more than 1. The parent serves nothing. It binds the port, which makes
sure that it is free, and never listens on it, as it would be given connections; each worker binds it too
(SO_REUSEPORT), so that the system spreads connections over the live ones. Workers are new processes of the same
program, never forks, which gRPC does not survive.
"""

import asyncio
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog

from authsvc.runtime.clock import happens
from authsvc.runtime.control_channel import NOTIFY, READY, WorkerSpec, received
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.listening import bind, bound_address
from authsvc.runtime.process import stop_at_signals

_log = structlog.get_logger("workers")

Arguments: TypeAlias = Mapping[str, Sequence[str]]
"""By the names of workers, the program's arguments, which its spec follows."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long a parent waits for its workers."""

    restart_seconds_min: float = 0.1
    restart_seconds_max: float = 5.0
    """Between the end of a worker and the next try: doubled until one is stable."""
    stable_after_seconds: float = 10.0
    """A worker that served so long did not fail at starting; its successor is started at once."""
    start_seconds_max: float = 60.0
    """For a worker to be ready, which takes far less unless it hangs; then it is killed, and another one started."""
    stop_seconds_max: float = 60.0
    """For a worker to drain, likewise."""

    def restart_seconds(self, before_seconds: float, served_seconds: float) -> float:
        """Return how long to wait for the next try, after one that followed a wait of `before_seconds`."""
        if served_seconds >= self.stable_after_seconds:
            return 0.0
        return min(max(2 * before_seconds, self.restart_seconds_min), self.restart_seconds_max)


class StartFailedError(Exception):
    """A worker ended before it was ready, while the service was starting. It has said why itself."""

    def __init__(self, status: int) -> None:
        """`status` is its exit status, negative for the signal that killed it."""
        super().__init__(f"a worker ended with status {status}")
        self.status = status


async def run_workers(
    listen: Address,
    variable: str,
    count: int,
    arguments: Sequence[str],
    started: Callable[[Address], None],
    helpers: Arguments | None = None,
) -> None:
    """Run `count` workers with these arguments until SIGTERM or SIGINT, and then let them drain.

    `started` is called with the address once all are ready; `helpers` are what Parent's are. Raises ConfigurationError
    naming the variable that says where to listen, and StartFailedError.
    """
    stop = stop_at_signals()
    async with bind(listen, variable) as sockets:
        address = listen if listen.port else bound_address(sockets)
        workers = {str(number): arguments for number in range(1, count + 1)}
        await Parent(address, time.monotonic).run(workers, stop, lambda: started(address), helpers)


@dataclass(eq=False)
class Parent:
    """Starts workers, watches and restarts them, and lets them drain.

    `address` is what the workers listen on; `program` is by default the one that runs.
    """

    address: Address
    monotonic: Callable[[], float]
    program: Sequence[str] = field(default_factory=lambda: (sys.executable, sys.argv[0]))
    limits: WorkerLimits = WorkerLimits()

    def __post_init__(self) -> None:
        self._workers: list[_Worker] = []
        self._helpers: list[_Worker] = []

    async def run(
        self,
        workers: Arguments,
        stop: asyncio.Event,
        started: Callable[[], None],
        helpers: Arguments | None = None,
    ) -> None:
        """Run the workers until `stop` is set, and return when all have drained.

        The first starts alone, so that what is wrong with the configuration is said once. `started` is called when
        all are ready. Raises StartFailedError when one ends before that, unless `stop` is set by then; those that end
        later are restarted, whatever they ended with, as are those that hang at their start. Helpers, which serve the
        workers, start with the first and are told to end, by the end of their control channel, after the last.
        """
        stopping = asyncio.create_task(stop.wait())
        first, *others = workers.items()
        try:
            self._helpers += [_Worker(self, *helper) for helper in (helpers or {}).items()]
            for starting in ([first], others):
                if not stop.is_set():
                    self._workers += [_Worker(self, *worker) for worker in starting]
                    await self._ready(stopping)
            if not stop.is_set():
                for worker in self._all():  # not before, so that a start that fails is told in one line
                    worker.log_start()
                started()
                await self._until(stopping)
        except StartFailedError:
            if not stop.is_set():  # else the signal may have reached the worker, too
                raise
        finally:
            stopping.cancel()
            await self._end(self._workers, _Worker.terminate)
            await self._end(self._helpers, _Worker.hang_up)

    def _all(self) -> "list[_Worker]":
        return self._helpers + self._workers

    async def _ready(self, stopping: asyncio.Future[Any]) -> None:
        """Return when all are ready, or are to stop."""

        async def all_ready() -> None:
            for worker in self._all():
                await worker.was_ready.wait()

        ready = asyncio.create_task(all_ready())
        try:
            await self._until(stopping, ready)
        finally:
            ready.cancel()

    async def _until(self, *events: asyncio.Future[Any]) -> None:
        """Return when one of these is done; raise what the task of a worker ended with."""
        tasks = [worker.task for worker in self._all()]
        await asyncio.wait([*events, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()

    async def _end(self, workers: "Sequence[_Worker]", how: "Callable[[_Worker], None]") -> None:
        """Stop them, and return when they have ended."""
        if not workers:
            return
        for worker in workers:
            how(worker)
        seconds_max = self.limits.stop_seconds_max
        _, late = await asyncio.wait([worker.task for worker in workers], timeout=seconds_max)
        for worker in workers:
            if worker.task in late:
                _log.error("worker_killed", worker=worker.name, reason=f"not ended in {seconds_max:g} s")
                worker.task.cancel()
        await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)

    def pass_on(self, notifier: "_Worker") -> None:
        for worker in self._all():
            if worker is not notifier:
                worker.notify()


class _Worker:
    """The processes that have a name, one after the other."""

    def __init__(self, parent: Parent, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.was_ready = asyncio.Event()
        """Set from the first time on."""
        self._parent = parent
        self._arguments = arguments
        self._ready_at = math.inf
        """When the process that runs now said so; infinite before."""
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._stopping = asyncio.Event()
        self.task = asyncio.create_task(self._keep_running(), name=f"worker {name}")

    def log_start(self) -> None:
        if self._process is not None:
            _log.info("worker_started", worker=self.name, pid=self._process.pid)

    def notify(self) -> None:
        if self._channel is not None:
            with suppress(OSError):  # it has ended; or it has yet to read what it was sent before
                self._channel.send(NOTIFY)

    def terminate(self) -> None:
        """Let it drain, and start no other."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def hang_up(self) -> None:
        """Likewise, for one that lets signals pass: a supervisor may send them to all processes of a service."""
        self._stopping.set()
        if self._channel is not None:
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)

    async def _keep_running(self) -> None:
        """Start a process, and another one whenever it ends, until stopped."""
        wait_seconds, limits = 0.0, self._parent.limits
        while not self._stopping.is_set():
            try:
                status = await self._run()
            except TimeoutError:
                _log.error("worker_killed", worker=self.name, reason=f"not ready in {limits.start_seconds_max:g} s")
            except OSError as error:
                reason = error.strerror or str(error)
                if not self.was_ready.is_set():
                    raise ConfigurationError(f"cannot start a worker: {reason}") from None
                _log.error("worker_not_started", worker=self.name, reason=reason)
            else:
                if self._stopping.is_set():
                    return
                if not self.was_ready.is_set():
                    raise StartFailedError(status)
                _log.warning("worker_ended", worker=self.name, status=status)
            wait_seconds = limits.restart_seconds(wait_seconds, self._parent.monotonic() - self._ready_at)
            await happens(self._stopping, wait_seconds)

    async def _run(self) -> int:
        """Start a process; return its exit status when it has ended. Raises OSError, and TimeoutError when it hangs.

        Killed when this raises, or is cancelled.
        """
        self._ready_at, parent = math.inf, self._parent
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                spec = WorkerSpec(self.name, theirs.fileno(), parent.address)
                self._process = process = subprocess.Popen(  # noqa: S603, ASYNC220 - our program; takes a millisecond
                    [*parent.program, *self._arguments, str(spec)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C reaches the parent, which stops them in order
                )
            try:
                ours.setblocking(False)
                self._channel = ours
                async with asyncio.timeout(parent.limits.start_seconds_max) as starting:
                    while said := await received(ours):
                        if READY in said:
                            starting.reschedule(None)
                            self._ready_at = parent.monotonic()
                            if self.was_ready.is_set():
                                self.log_start()
                            self.was_ready.set()
                        if NOTIFY in said:
                            parent.pass_on(self)
                return await asyncio.to_thread(process.wait)
            finally:
                self._channel = None
                if process.poll() is None:
                    process.kill()
                    process.wait()
