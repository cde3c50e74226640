"""A private PgBouncer in transaction mode, Debian's program, before the tests' PostgreSQL; fixtures: `conftest`.

A session's state is really lost between two transactions: it has several sessions, and takes turns with them.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.postgres import START_SECONDS_MAX, PostgresServer
from tests.scratch import SCRATCH

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SESSIONS = 4
"""With each database."""


class PgBouncer:
    """One pooler; `start` and `stop` may be called again and again."""

    def __init__(self, server: PostgresServer, *settings: str, port: int = 0) -> None:
        """Write its configuration, with these lines at the end; with a port it listens on the loopback, too.

        Skips the test where there is no such program, or fails it where `CI=true`.
        """
        if PGBOUNCER is None:
            missing = "PgBouncer is missing (apt-get install pgbouncer): what is behind it was not tested"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
        self.port = port or 6432
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="pgb-", dir=SCRATCH))  # as PostgresServer
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.directory, self._user, -1)
        lines = [
            "[databases]", f"* = host={server.directory} user=postgres", "[pgbouncer]", "pool_mode = transaction",
            f"listen_addr = {'127.0.0.1' if port else ''}", f"listen_port = {self.port}",
            f"unix_socket_dir = {self.directory}", "auth_type = any", f"default_pool_size = {SESSIONS}",
            "server_round_robin = 1", "server_login_retry = 0.1", "max_client_conn = 200", *settings,
        ]  # fmt: skip
        (self.directory / "pgbouncer.ini").write_text("\n".join(lines))

    def url(self, database: str) -> str:
        """Return the address of one of the server's databases by way of the pooler."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"

    def start(self) -> None:
        """Start it and return when it takes connections."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(PGBOUNCER), self.directory / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                user=self._user,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("PgBouncer did not start:\n" + (self.directory / "log").read_text()[-2000:])
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once, which ends the connections of its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stop it and delete its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.directory / f".s.PGSQL.{self.port}")) == 0


async def spread(url: str) -> None:
    """Have it open all of its sessions with a database."""
    async with AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            connection = await asyncpg.connect(url, statement_cache_size=0)
            stack.push_async_callback(connection.close)
            await connection.execute("BEGIN; SELECT 1")
