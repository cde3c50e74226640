"""Several processes of one service on one port: their parent, and what a worker has of it.

Both command lines use it when `…_WORKERS` is more than 1. The parent serves nothing. It binds the port, which makes
sure that it is free, and never listens on it, as it would be given connections; each worker binds it too
(SO_REUSEPORT), so that the system spreads connections over those who live. Workers are new processes of the same
program, never forks, which gRPC does not survive.

A pair of sockets joins the parent and each worker. Single bytes go over it: a worker says that it is ready, or that
it has news, which the parent passes on to the others. Its end tells either that the other one has ended.
"""

import asyncio
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import click
import structlog

from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress
from authsvc.runtime.listening import bind, bound_address

RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 5.0
"""Between the end of a worker and the next try: doubled while workers end young."""

STABLE_AFTER_SECONDS = 10.0
"""A worker that served so long did not fail at starting; its successor is started at once."""

START_SECONDS_MAX = 60.0
"""For a worker to be ready, which takes far less unless it hangs; then it is killed, and another one started."""

STOP_SECONDS_MAX = 60.0
"""For a worker to drain, likewise."""

_READY, _NEWS = b"r", b"n"

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger("workers")


class StartFailedError(Exception):
    """A worker ended before it was ready, while the service was starting. It has said why itself."""

    def __init__(self, status: int) -> None:
        """`status` is its exit status, negative for the signal that killed it."""
        super().__init__(f"a worker ended with status {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told on its command line: who it is, where it listens, and its end of the pair."""

    name: str
    parent_fd: int
    address: Address

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote; raise ValueError when there is no such parent."""
        name, parent_fd, address = text.split(":", 2)
        place = cls(name, int(parent_fd), ListenAddress.parse(address))
        try:
            is_socket = stat.S_ISSOCK(os.fstat(place.parent_fd).st_mode)
        except OSError:
            is_socket = False
        if not is_socket:
            raise ValueError("there is no parent")
        return place

    def __str__(self) -> str:
        return f"{self.name}:{self.parent_fd}:{self.address}"


class _PlaceType(click.ParamType[Place]):
    """A place as a command's argument."""

    name = "place"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Read it; refuse what no parent wrote."""
        try:
            return Place.parse(value)
        except ValueError:
            self.fail("this command is for `serve` to start", param, ctx)


PLACE = _PlaceType()


@dataclass(frozen=True, slots=True)
class Role:
    """One of the workers: its name in logs, and the program's arguments, which its place follows."""

    name: str
    arguments: tuple[str, ...]


def ignore_other_signals() -> None:
    """Let signals pass that would end a process, for which a supervisor or a terminal has other uses."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def stop_at_signals() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and SIGINT set. One that comes again changes nothing."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            _ignore_stop_signals()

    def handle(_number: int, _frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: the service has failed
            loop.call_soon_threadsafe(end)

    # Not the loop's own handlers: these are gone, as are all of Python, before the process is.
    for number in _STOP_SIGNALS:
        signal.signal(number, handle)
    return stop


def _ignore_stop_signals() -> None:
    hook, sys.unraisablehook = sys.unraisablehook, _say_nothing
    try:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _say_nothing(None)  # a call, at which Python looks for one that came in this very instant, and would report it
    finally:
        sys.unraisablehook = hook


def _say_nothing(_: object) -> None:
    pass


async def run_workers(
    listen: Address,
    variable: str,
    count: int,
    arguments: tuple[str, ...],
    started: Callable[[Address], None],
    helpers: Sequence[Role] = (),
) -> None:
    """Run `count` workers with these arguments until SIGTERM or SIGINT, and then let them drain.

    `started` is called with the address once all answer; `helpers` are what Parent's are. Raises ConfigurationError
    naming the variable that says where to listen, and StartFailedError.
    """
    stop = stop_at_signals()
    sockets = await bind(listen, variable)
    try:
        address = listen if listen.port else bound_address(sockets)
        workers = [Role(str(number), arguments) for number in range(1, count + 1)]
        await Parent(address, time.monotonic).run(workers, stop, lambda: started(address), helpers)
    finally:
        for bound in sockets:
            bound.close()


def restart_seconds(before_seconds: float, served_seconds: float) -> float:
    """Return how long to wait for the next try, after one that followed a wait of `before_seconds`."""
    if served_seconds >= STABLE_AFTER_SECONDS:
        return 0.0
    return min(max(2 * before_seconds, RESTART_SECONDS_MIN), RESTART_SECONDS_MAX)


class Parent:
    """Starts workers, watches and restarts them, and lets them drain."""

    def __init__(self, address: Address, monotonic: Callable[[], float], program: Sequence[str] = ()) -> None:
        """`address` is what the workers listen on; `program` is by default the one that runs."""
        self._address = address
        self._monotonic = monotonic
        self._program = program or (sys.executable, sys.argv[0])
        self._workers: list[_Worker] = []

    async def run(
        self,
        workers: Sequence[Role],
        stop: asyncio.Event,
        started: Callable[[], None],
        helpers: Sequence[Role] = (),
    ) -> None:
        """Run the workers until `stop` is set, and return when all have drained.

        The first starts alone, so that what is wrong with the configuration is said once. `started` is called when
        all are ready. Raises StartFailedError when one ends before that, unless `stop` is set by then; those that end
        later are restarted, whatever they ended with, as are those that hang at their start. Helpers, which serve the
        workers, start with the first and are told to end, by the end of their pair of sockets, after the last.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            for roles in ((*helpers, *workers[:1]), workers[1:]):
                if not stop.is_set():
                    await self._start(roles, stopping)
            if not stop.is_set():
                for worker in self._workers:  # not before, so that a start that fails is told in one line
                    worker.log_start()
                started()
                await self._until(stopping)
        except StartFailedError:
            if not stop.is_set():  # else the signal may have reached the worker, too
                raise
        finally:
            stopping.cancel()
            await _end([worker for worker in self._workers if worker.role not in helpers], _Worker.terminate)
            await _end([worker for worker in self._workers if worker.role in helpers], _Worker.hang_up)

    async def _start(self, roles: Sequence[Role], stopping: asyncio.Task[Any]) -> None:
        """Return when all of them are ready, or are to stop."""
        workers = [_Worker(role, self._command, self._pass_on, self._monotonic) for role in roles]
        self._workers += workers
        ready = asyncio.create_task(_all_ready(workers))
        try:
            await self._until(stopping, ready)
        finally:
            ready.cancel()

    async def _until(self, *events: asyncio.Future[Any]) -> None:
        """Return when one of these is done; raise what a worker's life ended with."""
        lives = [worker.life for worker in self._workers]
        await asyncio.wait([*events, *lives], return_when=asyncio.FIRST_COMPLETED)
        for life in lives:
            if life.done():
                life.result()

    def _command(self, role: Role, parent_fd: int) -> list[str]:
        return [*self._program, *role.arguments, str(Place(role.name, parent_fd, self._address))]

    def _pass_on(self, teller: "_Worker") -> None:
        for worker in self._workers:
            if worker is not teller:
                worker.tell_news()


class _Worker:
    """The processes that have a role, one after the other."""

    def __init__(
        self,
        role: Role,
        command: Callable[[Role, int], list[str]],
        pass_on: Callable[["_Worker"], None],
        monotonic: Callable[[], float],
    ) -> None:
        self.role = role
        self.was_ready = asyncio.Event()
        """Set from the first time on."""
        self._command = command
        self._pass_on = pass_on
        self._monotonic = monotonic
        self._ready_at = math.inf
        """When the process that runs now said so; infinite before."""
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._stopping = asyncio.Event()
        self.life = asyncio.create_task(self._live(), name=f"worker {role.name}")

    def log_start(self) -> None:
        """Log which process it is now."""
        if self._process is not None:
            _log.info("worker_started", worker=self.role.name, pid=self._process.pid)

    def tell_news(self) -> None:
        if self._link is not None:
            with suppress(OSError):  # it has ended; or there is more news already than it has read
                self._link.send(_NEWS)

    def terminate(self) -> None:
        """Let it drain, and start no other."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def hang_up(self) -> None:
        """Likewise, for one that lets signals pass: a supervisor may send them to all processes of a service."""
        self._stopping.set()
        if self._link is not None:
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)

    async def _live(self) -> None:
        """Start a process, and another one whenever it ends, until stopped."""
        wait_seconds = 0.0
        while not self._stopping.is_set():
            try:
                status = await self._run()
            except TimeoutError:
                _log.error("worker_killed", worker=self.role.name, reason=f"not ready in {START_SECONDS_MAX:g} s")
            except OSError as error:
                reason = error.strerror or str(error)
                if not self.was_ready.is_set():
                    raise ConfigurationError(f"cannot start a worker: {reason}") from None
                _log.error("worker_not_started", worker=self.role.name, reason=reason)
            else:
                if self._stopping.is_set():
                    return
                if not self.was_ready.is_set():
                    raise StartFailedError(status)
                _log.warning("worker_ended", worker=self.role.name, status=status)
            wait_seconds = restart_seconds(wait_seconds, self._monotonic() - self._ready_at)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_seconds)

    async def _run(self) -> int:
        """Start a process; return its exit status when it has ended. Raises OSError, and TimeoutError when it hangs.

        Killed when this raises, or is cancelled.
        """
        self._ready_at = math.inf
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._process = process = subprocess.Popen(  # noqa: S603, ASYNC220 - our program; takes a millisecond
                    self._command(self.role, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C reaches the parent, which stops them in order
                )
            try:
                ours.setblocking(False)
                self._link = ours
                async with asyncio.timeout(START_SECONDS_MAX) as starting:
                    while said := await _received(ours):
                        if _READY in said:
                            starting.reschedule(None)
                            self._ready_at = self._monotonic()
                            if self.was_ready.is_set():
                                self.log_start()
                            self.was_ready.set()
                        if _NEWS in said:
                            self._pass_on(self)
                return await asyncio.to_thread(process.wait)
            finally:
                self._link = None
                if process.poll() is None:
                    process.kill()
                    process.wait()


async def _received(link: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(link, 4096)
    except ConnectionError:  # it ended without reading what it was told
        return b""


async def _all_ready(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        await worker.was_ready.wait()


async def _end(workers: Sequence[_Worker], how: Callable[[_Worker], None]) -> None:
    """Stop them, and return when they have ended."""
    if not workers:
        return
    for worker in workers:
        how(worker)
    _, late = await asyncio.wait([worker.life for worker in workers], timeout=STOP_SECONDS_MAX)
    for worker in workers:
        if worker.life in late:
            _log.error("worker_killed", worker=worker.role.name, reason=f"not ended in {STOP_SECONDS_MAX:g} s")
            worker.life.cancel()
    await asyncio.gather(*(worker.life for worker in workers), return_exceptions=True)


class Link:
    """A worker's end of the pair: to its parent, and through it to the other workers. Use it with `with`."""

    def __init__(
        self, place: Place, hung_up: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    ) -> None:
        """Call `hung_up` when the parent has done so, or has ended. To be made in the running loop.

        A worker ends with its parent, at once: what starts the service again then finds the port free.
        """
        self._hung_up = hung_up
        self._socket = socket.socket(fileno=place.parent_fd)
        self._socket.setblocking(False)
        self._heard: Callable[[], None] = lambda: None
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def ready(self) -> None:
        """Say that this worker answers."""
        self._say(_READY)

    def tell(self) -> None:
        """Say that there is news: what the others' `listen` gave is called. It may be lost, as a parent may end."""
        self._say(_NEWS)

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` when another worker has told of news; several at once may count as one."""
        self._heard = heard

    def _say(self, what: bytes) -> None:
        with suppress(OSError):  # the parent has ended, or has not passed on what was said before
            self._socket.send(what)

    def _receive(self) -> None:
        try:
            said = self._socket.recv(4096)
        except BlockingIOError:
            return
        except ConnectionError:
            said = b""
        if said:
            self._heard()
        else:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._hung_up()
