"""Both services as real processes: started, watched, signalled and stopped. Used by all tests in this directory.

Everything a process prints goes to files, which are shown when a test fails and can be searched
while it runs. Nothing of the developer's own AUTHSVC_… or HTTPBRIDGE_… environment gets in.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from tests.e2e import forks
from tests.migrated import make_state_dir
from tests.waiting import DEADLINE_SECONDS, until

BIN = Path(sys.executable).parent
_AS_INSTALLED = Path(__file__).parent / "as_installed"
NOT_KEPT = ("AUTHSVC_", "HTTPBRIDGE_", "MAKE", "MFLAGS", "PYTHON")


_ANY_PORT = "127.0.0.1:0"
_PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever asks for any port, connections included."""

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a port of the loopback that nobody else takes, also after it was given back, while this process lives.

    Other runs of the tests know by an abstract Unix socket that it is taken.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0deeptracer-tests-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reserved.close()
            continue
        _reserved.append(reserved)
        return port
    raise AssertionError("all ports are taken")


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what configures the product, make or Python.

    What would have Python write without a buffer hides that a flush is missing.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_KEPT)}
    # Warnings of a service, such as a socket it forgot, are printed, and found when it is stopped.
    return kept | {"PYTHONWARNINGS": "default", "PYTHONPATH": str(_AS_INSTALLED)}


class Service:
    """One process of `authsvc` or `httpbridge` that runs until it is stopped."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        *,
        files_max: int | None = None,
    ) -> None:
        """Start it, with no more open files than that; its output goes to files in the directory.

        `started` waits until it serves.
        """
        self.name = name if arguments[0] == "serve" else f"{name}-{arguments[0]}"
        number = len(list(directory.glob(f"{name}-*.stdout"))) + 1
        limits = [] if files_max is None else ["prlimit", f"--nofile={files_max}:{files_max}"]
        self._stdout = directory / f"{name}-{number}.stdout"
        self._stderr = directory / f"{name}-{number}.stderr"
        self.address = ""
        """`host:port`, once it has started."""
        self.is_tls = False
        self._process: subprocess.Popen[bytes] | forks.Fork
        with Path(os.devnull).open() as stdin, self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            if forks.in_use and not limits and forks.in_use.can_start(environ):
                streams = [stdin.fileno(), stdout.fileno(), stderr.fileno()]
                self._process = forks.in_use.start([BIN / name, *arguments], environ, directory, streams)
            else:
                self._process = subprocess.Popen(
                    [*limits, BIN / name, *arguments],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=dict(environ),
                    cwd=directory,
                    process_group=0,  # Ctrl-C in the terminal is for the tests, which then stop it
                )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def started(self) -> None:
        """Return when it has printed the line that says where it listens; fail when it ends before."""
        await until(f"{self.name} starts", lambda: "\n" in self.stdout or not self.is_running)
        assert self.is_running, f"{self.name} ended with {self._process.returncode}: {self.stderr}"
        words = self.stdout.split("\n")[0].split()
        assert words[:2] == [self.name, "listening"]
        fields = dict(word.split("=", 1) for word in words[2:])
        self.address, self.is_tls = fields["address"], fields["tls"] == "on"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; return its exit status, negative for a signal that killed it."""
        await until(f"{self.name} ends", lambda: not self.is_running)
        status = self._process.returncode
        assert status is not None
        return status

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, which it must do in order."""
        self.send(number)
        assert await self.ended() == 0

    async def kill(self) -> None:
        """End it as `kill -9` does."""
        self.send(signal.SIGKILL)
        assert await self.ended() == -signal.SIGKILL

    def close(self) -> None:
        """End it whatever state it is in, and print what it wrote, which pytest shows if the test failed."""
        if self.is_running:
            self._process.kill()
        self._process.wait()
        for path in (self._stdout, self._stderr):
            print(f"--- {path.name}, exit status {self._process.returncode}\n{path.read_text()[-4000:]}")  # noqa: T201


class System:
    """A state directory, and the processes that share it."""

    def __init__(self, directory: Path) -> None:
        """Keep everything in the directory."""
        self.directory = directory
        self.state_dir = directory / "state"
        self._services: list[Service] = []
        self.variables = {
            "AUTHSVC_STATE_DIR": str(self.state_dir),
            "AUTHSVC_LISTEN": _ANY_PORT,
            "HTTPBRIDGE_STATE_DIR": str(self.state_dir),
            "HTTPBRIDGE_LISTEN": _ANY_PORT,
            "HTTPBRIDGE_DASHBOARD_LISTEN": _ANY_PORT,
            "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE": "100000000",  # a load must not reach it, however fast the machine is
        }
        """The environment of every process started from now on, besides what is neutral."""
        self.files_max: int | None = None
        """The most open files of each of them; None for what the system allows."""

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a process, with these variables on top."""
        return clean_environment() | self.variables | variables

    def launch(self, name: str, *arguments: str, **variables: str) -> Service:
        """Start a service, or another command that runs on, and do not wait."""
        environ = self.environment(**variables)
        service = Service(name, arguments or ("serve",), environ, self.directory, files_max=self.files_max)
        self._services.append(service)
        return service

    def running(self) -> list[Service]:
        """Return the services that have not ended."""
        return [service for service in self._services if service.is_running]

    async def key_service(self, **variables: str) -> Service:
        """Start `authsvc`, on a database that is migrated already; commands and bridges started later find it."""
        if "AUTHSVC_DATABASE_URL" not in self.variables | variables:
            make_state_dir(self.state_dir)
        service = self.launch("authsvc", **self._with_port("AUTHSVC_LISTEN", variables))
        await service.started()
        self.variables |= {"AUTHSVC_ADDRESS": service.address, "HTTPBRIDGE_KEY_SERVICE": service.address}
        return service

    async def bridge(self, **variables: str) -> Service:
        """Start `httpbridge`."""
        service = self.launch("httpbridge", **self._with_port("HTTPBRIDGE_LISTEN", variables))
        await service.started()
        return service

    async def dashboard(self, **variables: str) -> Service:
        """Start `httpbridge dashboard`."""
        service = self.launch("httpbridge", "dashboard", **self._with_port("HTTPBRIDGE_DASHBOARD_LISTEN", variables))
        await service.started()
        return service

    def _with_port(self, variable: str, variables: Mapping[str, str]) -> dict[str, str]:
        """Have a service listen on a port that is still there for the one that takes its place."""
        address = {**self.variables, **variables}[variable]
        return {**variables, variable: f"127.0.0.1:{free_port()}" if address == _ANY_PORT else address}

    def run(self, *command: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end."""
        name, *arguments = command
        environ = self.environment(**variables)
        if forks.in_use and forks.in_use.can_start(environ):
            command_line: list[str | Path] = [BIN / name, *arguments]
            ran = forks.in_use.run(command_line, environ, self.directory, stdin.encode(), DEADLINE_SECONDS)
            printed = (output.decode().replace("\r\n", "\n") for output in (ran.stdout, ran.stderr))
            done = subprocess.CompletedProcess(ran.args, ran.returncode, *printed)
        else:
            done = subprocess.run(
                [BIN / name, *arguments],
                input=stdin,
                env=environ,
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=DEADLINE_SECONDS,
            )
        print(f"--- {' '.join(command)}, exit status {done.returncode}\n{done.stdout}{done.stderr}")  # noqa: T201
        return done

    def issue(self, project: str, *origins: str) -> str:
        """Issue a project's key and return it. By gRPC, without TLS: a command takes a third of a second."""
        token = (self.state_dir / "admin-token").read_text().strip()
        with grpc.insecure_channel(self.variables["AUTHSVC_ADDRESS"]) as channel:
            issued = pb_grpc.KeyServiceStub(channel).Issue(
                pb.IssueRequest(project_id=project, origins=origins),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=DEADLINE_SECONDS,
            )
        return issued.api_key

    def close(self) -> None:
        """End what still runs; fail if a service had an error that nobody expected, or left something open."""
        for service in reversed(self._services):
            service.close()
        for service in self._services:
            for sign in ("Traceback", "unexpected_error", "call_failed", "Warning:"):
                assert sign not in service.stderr, f"{service.name} printed: {service.stderr}"
