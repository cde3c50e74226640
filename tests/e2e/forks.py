"""Starts the product's commands without the second that importing them takes: what half of the processes live for.

A process that has imported both command lines, and done nothing else, forks for each command; the fork calls the
command's `main`, with streams, environment, directory, process group and limits of its own, and ends as any process;
but one that is run to its end does not have Python free its memory, see `_leave`. What the long form starts is executed
as it is installed, and so are the workers of a service in either form.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_MESSAGE_BYTES_MAX = 150_000
_MODULES = (
    "authsvc.app",
    "authsvc.migrations",
    "httpbridge.app",
    "httpbridge.cli.log_view",
    "httpbridge.dashboard.app",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.dialects.postgresql.asyncpg",
)
"""What the commands import when they run."""


class Forks:
    """The process that forks, started when it is first needed."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._environ: Mapping[str, str] = {}
        self._asking = threading.Lock()  # some tests run commands in threads

    def can_start(self, environ: Mapping[str, str]) -> bool:
        """Whether it would be the same with this environment, of which Python and gRPC read a part at their start."""
        return _read_at_start(environ) == _read_at_start(self._environ or environ)

    def start(
        self,
        command: Sequence[str | Path],
        environ: Mapping[str, str],
        directory: Path,
        streams: Sequence[int],
        *,
        frees: bool = True,
    ) -> "Fork":
        """Run a command, whose first word is the path of one of the product's, in a process group of its own.

        At its end it frees its memory, as Python does, or leaves that out.
        """
        request = {"argv": [*map(str, command)], "environ": dict(environ), "directory": str(directory), "frees": frees}
        return Fork(self, self.ask(request, streams, environ)["pid"])

    def run(
        self,
        command: Sequence[str | Path],
        environ: Mapping[str, str],
        directory: Path,
        stdin: bytes,
        timeout_seconds: float,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, as `subprocess.run` does."""
        with TemporaryFile() as given, TemporaryFile() as stdout, TemporaryFile() as stderr:
            given.write(stdin)
            given.seek(0)
            streams = [each.fileno() for each in (given, stdout, stderr)]
            fork = self.start(command, environ, directory, streams, frees=False)
            try:
                status = fork.wait(timeout_seconds)
            finally:
                fork.kill()
            for output in (stdout, stderr):
                output.seek(0)
            return subprocess.CompletedProcess(list(command), status, stdout.read(), stderr.read())

    def ask(self, request: Any, streams: Sequence[int] = (), environ: Mapping[str, str] | None = None) -> Any:
        """Send a request and return the answer."""
        with self._asking:
            if self._channel is None:
                self._open(environ or {})
            assert self._channel is not None
            socket.send_fds(self._channel, [json.dumps(request).encode()], streams)
            return json.loads(self._channel.recv(_MESSAGE_BYTES_MAX))

    def _open(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(other.fileno())],
                env=dict(environ),
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C in the terminal is for the tests
            )

    def close(self) -> None:
        """End it; what it has forked goes on."""
        if self._channel is not None and self._process is not None:
            self._channel.close()
            self._process.wait()


in_use: Forks | None = None
"""What starts commands; without it they are executed. Set by tests/conftest.py."""


class Fork:
    """A process that was forked, as `subprocess.Popen` has them."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks
        self._ended = os.pidfd_open(pid)  # it is there until its status was asked for

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._forks.ask({"wait": self.pid})["status"])
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, for that many seconds at most; return what `poll` does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            select.select([self._ended], [], [], left)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def _read_at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(("PYTHON", "GRPC_", "LC_", "LANG", "MALLOC_", "LD_", "SSL"))
    }


def _serve(channel: socket.socket) -> Any:
    """Fork for each request, until there are no more. Return in each fork, with its request."""
    set_by_imports = {name: value for name, value in os.environ.items() if name.startswith("GRPC_")}
    while True:
        message, streams, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES_MAX, 3)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            answer = {"status": os.waitpid(request["wait"], 0)[1]}
        elif pid := os.fork():
            for stream in streams:
                os.close(stream)
            answer = {"pid": pid}
        else:
            channel.close()
            _become(request, streams, set_by_imports)
            return request
        channel.send(json.dumps(answer).encode())


def _become(request: Any, streams: Sequence[int], set_by_imports: Mapping[str, str]) -> None:
    os.setpgid(0, 0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(set_by_imports | request["environ"])
    time.tzset()
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


_status: int | None = None
"""Of a command that has ended in order, and is not to free its memory."""


def _leave() -> None:
    """End a command that has ended in order, without the freeing of all that the forks share.

    That would copy it: 60 ms of a core. What nothing refers to any more has its warnings all the same.
    """
    if _status is not None and threading.active_count() == 1:
        gc.collect()
        with suppress(OSError, ValueError):  # Python says so in its own way
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_status)


def main() -> Any:
    """Serve the channel whose number is the first argument; in a fork, run the command and return what it returns."""
    global _status  # noqa: PLW0603 - read at the very end of the process
    atexit.register(_leave)  # before anything else is, so that it is called last
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        # First what sets variables that gRPC reads as it is imported.
        for module in ("authsvc.cli.commands", "httpbridge.cli.commands", *_MODULES):
            import_module(module)
        gc.freeze()
        request = _serve(channel)
    if request is None:
        return None
    try:
        status = import_module(f"{Path(request['argv'][0]).name}.cli").main()
    except SystemExit as end:
        status = end.code
    if not request["frees"] and (status is None or isinstance(status, int)):
        _status = (status or 0) & 0xFF
    return status


if __name__ == "__main__":
    sys.exit(main())
