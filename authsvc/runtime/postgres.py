"""Connections to PostgreSQL, for the stores of both services: SQLAlchemy's, and the driver's own.

Behind a pooler that lends a server's session for a transaction only (PgBouncer with `pool_mode=transaction`, and its
like), a session's state may be another client's a moment later. So there, and only there, nothing is prepared, and
settings are made for each transaction; nobody can LISTEN. Each connection finds out by itself: behind a pooler, the
process that the server runs is not the one that was announced when the connection was made.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from authsvc.runtime.database_url import PostgresAddress, SetupError
from authsvc.runtime.postgres_files import password_for, tls_options
from authsvc.runtime.sql import LOSES

_CONNECT_SECONDS_MAX = 5.0
"""For each host, unless the URL says otherwise."""

_PREPARED_MAX = 100
"""Statements that the driver keeps prepared, of those that it prepares unasked; SQLAlchemy keeps as many."""

_TRIES = 3
"""The first connection finds out whether there is a pooler, and is not the one to keep where there is none."""

_NEEDED = {
    "fsync": (LOSES, ("on",)),
    "synchronous_commit": (LOSES, ("on", "remote_apply")),
    "server_encoding": ("the database could not hold every text", ("UTF8",)),
}
"""Settings, what were without them, and the values that they must have."""


class StandbyError(ConnectionError):
    """A standby answers, which lags behind: the pooler has turned to it since we connected."""

    def __init__(self) -> None:
        super().__init__("the pooler leads to a standby, not to the primary")


DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, SetupError)
"""What a connection raises, and making one, besides OSError and TimeoutError; past SQLAlchemy, as it is."""


class Connection(asyncpg.Connection):
    """The driver's connection, and whether a pooler is in between."""

    __slots__ = ("is_pooled", "settings")
    is_pooled: bool
    settings: Mapping[str, str]
    """Behind a pooler, those of a transaction."""

    @asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """Apply the settings to what is done within; behind a pooler, that takes a transaction."""
        if not self.is_pooled:
            yield
            return
        async with self.transaction():
            await self.execute("; ".join(f"SET LOCAL {name} TO '{value}'" for name, value in self.settings.items()))
            yield


class Postgres:
    """One database: how to connect to it, and what holds in every session."""

    def __init__(
        self,
        address: PostgresAddress,
        *,
        program: str,
        command_seconds_max: float,
        settings: Mapping[str, str],
        is_primary: bool = False,
    ) -> None:
        """Connect to nothing yet.

        `program` is what the server calls a connection, unless the URL names it. With `is_primary` a standby will not
        do. Raises SetupError for a URL that asks for one nevertheless.
        """
        self._address = address
        self._program = program
        self._command_seconds_max = command_seconds_max
        self._settings = settings
        self._is_primary = is_primary
        self._role = address.target_session_attrs or "any"
        if is_primary and self._role == "any":
            self._role = "primary"
        if is_primary and self._role not in ("primary", "read-write"):
            raise SetupError(f"the parameter target_session_attrs cannot be {self._role}: a standby lags behind")
        self.is_pooled: bool | None = None
        """Whether the newest connection goes through a pooler; None where that is not known."""

    async def connect(self) -> Connection:
        """Return a new connection, on which the settings hold (see `Connection.settled`).

        Raises DRIVER_ERRORS, OSError and TimeoutError.
        """
        for _ in range(_TRIES):
            may_prepare = self.is_pooled is False
            try:
                connection = await self._reach(may_prepare)
                self.is_pooled = connection.is_pooled
                if may_prepare is not connection.is_pooled:
                    async with _terminated(connection):
                        await self._prepare(connection)
                    return connection
            except BaseException:
                self.is_pooled = None
                raise
            connection.terminate()
        raise ConnectionError("now a pooler answers, now a server")

    async def _prepare(self, connection: Connection) -> None:
        connection.settings = self._settings
        if connection.is_pooled:
            # What is so by default, such as read-only, is for later transactions.
            connection.settings = {name.removeprefix("default_"): value for name, value in self._settings.items()}
        elif self._settings:
            await connection.execute("; ".join(f"SET {name} TO '{value}'" for name, value in self._settings.items()))

    async def _reach(self, may_prepare: bool) -> Connection:
        """Connect to the first host that is there and has the role."""
        address = self._address
        connect: Any = asyncpg.connect
        options: dict[str, Any] = tls_options(address.tls) | {
            "user": address.user,
            "database": address.database,
            "timeout": address.connect_seconds or _CONNECT_SECONDS_MAX,
            "command_timeout": self._command_seconds_max,
            "statement_cache_size": _PREPARED_MAX if may_prepare else 0,  # 0: the driver then prepares nothing at all
            "connection_class": Connection,
            "server_settings": {"application_name": address.application_name or self._program},
        }
        if address.options:
            options["server_settings"]["options"] = address.options
        failure: Exception | None = None
        # One host after the other, each with its time: the driver gives all of them together the time of one.
        for role in ("standby", "any") if self._role == "prefer-standby" else (self._role,):
            for host, port in address.hosts or (("", None),):
                try:
                    connection: Connection = await connect(
                        **options,
                        host=[host] if host else None,
                        port=port,
                        password=password_for(address, host, port),
                        target_session_attrs="any",
                    )
                    if await _has_role(connection, role):
                        return connection
                    failure = failure or ConnectionError(f"no host is {role}")
                except ssl.SSLCertVerificationError as error:
                    raise SetupError(f"the server's certificate is not trusted: {error.verify_message}") from None
                except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
                    failure = error
                except asyncpg.ProtocolViolationError as error:
                    if "startup parameter" in str(error):
                        raise SetupError(f"the parameter options cannot be used with this pooler: {error}") from None
                    raise
                except (asyncpg.ClientConfigurationError, ValueError, KeyError) as error:
                    # Of libpq's variables, which the driver reads; or of a user id without a name.
                    raise SetupError(f"PG… variables or the system's user: {error}") from None
        assert failure is not None  # noqa: S101 - there is one host at least
        raise failure

    def engine(self, *, connections_max: int, overflow_max: int, wait_seconds_max: float) -> AsyncEngine:
        """Return an engine that keeps so many connections, and has so many more while they are needed."""
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self.connect,
            pool_size=connections_max,
            max_overflow=overflow_max,
            pool_timeout=wait_seconds_max,
            hide_parameters=True,
        )
        sa.event.listen(engine.sync_engine, "begin", self._settle)
        return engine

    def _settle(self, connection: sa.Connection) -> None:
        """Behind a pooler, make the settings for this transaction, and look who answers."""
        driver: Any = connection.connection.driver_connection
        if not driver.is_pooled:
            return
        settings = [sa.func.set_config(name, value, True) for name, value in driver.settings.items()]
        (is_standby, *_) = connection.execute(sa.select(sa.func.pg_is_in_recovery(), *settings)).one()
        if is_standby and self._is_primary:
            raise StandbyError


@asynccontextmanager
async def _terminated(connection: Connection) -> AsyncIterator[None]:
    """Close the connection when what is done with it fails."""
    try:
        yield
    except BaseException:
        connection.terminate()
        raise


async def _has_role(connection: Connection, role: str) -> bool:
    """Say whether it has the role, and note whether a pooler is in between; close it when it does not.

    The driver would believe what the connection was told when it was made, which a pooler may have heard long ago.
    """
    async with _terminated(connection):
        # Unnamed: what other clients of a pooler have prepared may have the driver's names.
        statement = await connection.prepare(
            "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'", name=""
        )
        ((pid, is_standby, is_read_only),) = await statement.fetch()
        connection.is_pooled = pid != connection.get_server_pid()
    has_role = {
        "any": True, "primary": not is_standby, "standby": is_standby, "read-only": is_read_only,
        "read-write": not is_read_only,
    }[role]  # fmt: skip
    if not has_role:
        connection.terminate()
    return bool(has_role)


async def separate(connection: AsyncConnection) -> None:
    """Let each statement be a transaction of its own, without two more round trips; not behind a pooler: `_settle`."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if not driver.is_pooled:
        await connection.execution_options(isolation_level="AUTOCOMMIT")


async def check_settings(connection: AsyncConnection) -> None:
    """Raise SetupError for a server that would lose what it commits, or cannot hold every text."""
    for setting, (without, values) in _NEEDED.items():
        value = (await connection.execute(sa.text(f"SHOW {setting}"))).scalar_one()
        if value not in values:
            raise SetupError(f"{without}: {setting} is {value}, and must be {' or '.join(values)}")
