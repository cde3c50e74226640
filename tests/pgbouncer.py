"""A private PgBouncer in transaction mode, Debian's program, before the tests' PostgreSQL; fixtures: `conftest`.

Its statements really land on different sessions of the server: it keeps several, and takes turns.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.postgres import START_SECONDS_MAX, PostgresServer

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
MISSING = "PgBouncer is missing (apt-get install pgbouncer): what is behind it was not tested"
SESSIONS = 4
"""That it keeps with each database."""


class PgBouncer:
    """One pooler; `start` and `stop` may be called again and again."""

    def __init__(self, server: PostgresServer) -> None:
        assert PGBOUNCER is not None
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="pgb-", dir="/tmp"))  # as PostgresServer
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._directory, self._user, -1)
        (self._directory / "pgbouncer.ini").write_text(
            f"""
            [databases]
            * = host={server.directory} user=postgres
            [pgbouncer]
            pool_mode = transaction
            listen_addr =
            unix_socket_dir = {self._directory}
            auth_type = any
            default_pool_size = {SESSIONS}
            min_pool_size = {SESSIONS}
            server_round_robin = 1
            server_login_retry = 0.1
            max_client_conn = 200
            """.replace("\n            ", "\n")
        )
        self.start()

    def url(self, database: str) -> str:
        """Return the address of one of the server's databases by way of the pooler."""
        return f"postgresql://postgres@/{database}?host={self._directory}&port=6432"

    def start(self) -> None:
        """Start it and return when it takes connections."""
        assert PGBOUNCER is not None
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PGBOUNCER, self._directory / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
                user=self._user,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("PgBouncer did not start:\n" + (self._directory / "log").read_text()[-2000:])
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
        shutil.rmtree(self._directory, ignore_errors=True)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._directory / ".s.PGSQL.6432")) == 0
