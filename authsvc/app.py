"""Composition root of the key service: database -> stores -> watch -> servicers -> grpc.aio server.

Called by `cli serve`; `serve` runs until it is told to stop.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from authsvc.changes import ChangeFeed
from authsvc.client.channel import ClientTls
from authsvc.client.environment import Address, ConfigurationError
from authsvc.config import Config, Tokens, make_state_dir
from authsvc.database import Database
from authsvc.errors import StoreRefusedError
from authsvc.interceptors import CallInterceptor, CallLimits
from authsvc.lease_store import LeaseStore
from authsvc.service import KeyService, OperationsService, ProjectService
from authsvc.store import SCHEMA_VERSION, KeyStore
from authsvc.watch import Watch
from protos.authsvc.v1 import key_service_pb2 as pb
from protos.authsvc.v1 import key_service_pb2_grpc as pb_grpc

_SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
# The largest request is BatchValidate with 256 keys and origins of 300 characters, at most 4 bytes each.
_MESSAGE_BYTES_MAX = 512 * 1024
_DRAIN_SECONDS = 10.0


def now() -> datetime:
    """Return the instant that is stored: aware, UTC."""
    return datetime.now(UTC)


async def migrate(config: Config) -> tuple[str | None, str]:
    """Bring the database to this version's schema; return the version it had, and the one it has.

    Raises ConfigurationError for a schema newer than this code, StoreUnavailableError.
    """
    async with _database(config) as database:
        before = await database.schema_version()
        await _migrate(database, before)
        return before, SCHEMA_VERSION


async def renew_epoch(config: Config) -> None:
    """Make every holder of cached verdicts forget all it has, after commits may have been lost."""
    async with _database(config) as database:
        await _check_schema(database)
        await LeaseStore(database, now, config.lease_margin_seconds).renew_epoch(config.lease_seconds)


async def serve(
    config: Config, stop: asyncio.Event, started: Callable[[Address], None], limits: CallLimits | None = None
) -> None:
    """Serve until `stop` is set, then drain: new calls are refused, calls under way are answered.

    `started` is called once, with the bound address, when calls are answered. Raises ConfigurationError when the
    service cannot start as configured, and StoreUnavailableError when the database cannot be reached.
    """
    limits = limits or CallLimits()
    config.check_exposure()
    make_state_dir(config.state_dir)
    tokens = Tokens.of(config)
    async with _database(config) as database:
        await _check_schema(database)
        store = KeyStore(database, now)
        leases = LeaseStore(database, now, config.lease_margin_seconds)
        feed = ChangeFeed(database, store, leases)
        await feed.open()
        watch = Watch(
            store,
            leases,
            feed,
            lease_seconds=config.lease_seconds,
            margin_seconds=config.lease_margin_seconds,
            now=now,
            monotonic=time.monotonic,
        )
        server = grpc.aio.server(
            interceptors=[CallInterceptor(tokens, limits, time.monotonic)],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.calls_max,
        )
        key_service = KeyService(store, watch, feed)
        pb_grpc.add_KeyServiceServicer_to_server(key_service, server)
        pb_grpc.add_ProjectServiceServicer_to_server(ProjectService(store), server)
        pb_grpc.add_OperationsServiceServicer_to_server(OperationsService(store, leases), server)
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        if config.reflection:
            names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        address = _listen(server, config)
        watching = asyncio.create_task(watch.run())
        await server.start()
        for service in ("", *_SERVICES):
            await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        started(address)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await healthy.enter_graceful_shutdown()
            watch.close()
            await server.stop(_DRAIN_SECONDS)
            await key_service.drain()
            await _end(watching, stopping)


def _options(limits: CallLimits) -> tuple[tuple[str, int], ...]:
    timeout_ms = round(limits.keepalive_timeout_seconds * 1000)
    return (
        ("grpc.so_reuseport", 0),  # a taken port is an error, not a second service that gets half of the calls
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", limits.connection_calls_max),
        ("grpc.keepalive_time_ms", round(limits.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # else a minute: the one above holds for the socket alone
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(limits.ping_seconds_min * 1000)),
    )


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks; raise what one of them failed with."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[Database]:
    if config.database_url is None:
        make_state_dir(config.state_dir)
    database = Database(config.store_url())
    try:
        await database.open()
        yield database
    except StoreRefusedError as error:  # later ones are answers to calls
        raise ConfigurationError(f"AUTHSVC_DATABASE_URL: {error.reason}") from None
    finally:
        await database.close()


async def _check_schema(database: Database) -> None:
    version = await database.schema_version()
    if version == SCHEMA_VERSION:
        return
    if not database.is_sqlite:
        raise ConfigurationError(
            f"the database's schema is at version {version or 'none'}, this service needs {SCHEMA_VERSION}: "
            "run 'authsvc migrate'"
        )
    await _migrate(database, version)


async def _migrate(database: Database, version: str | None) -> None:
    if version is not None and version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the database's schema is at version {version}, made by a newer authsvc than this one ({SCHEMA_VERSION})"
        )
    from authsvc.migrations import upgrade  # noqa: PLC0415 - Alembic costs a start that has nothing to migrate 0.1 s

    await database.migrate(upgrade)


def _listen(server: grpc.aio.Server, config: Config) -> Address:
    try:
        _check_free(config.listen)
        if config.tls_cert is None:
            port = server.add_insecure_port(str(config.listen))
        else:
            port = server.add_secure_port(str(config.listen), _credentials(config))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "gRPC cannot use this address"
        raise ConfigurationError(f"AUTHSVC_LISTEN: cannot listen on {config.listen}: {reason}") from None
    return Address(config.listen.host, port)


def _check_free(address: Address) -> None:
    """Raise the OSError that says why the address cannot be listened on: gRPC does not say, and prints at length."""
    for family, kind, protocol, _, name in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)


def _credentials(config: Config) -> grpc.ServerCredentials:
    """Return what gRPC serves TLS with, 1.2 or later; raise ConfigurationError naming the file that is wrong."""
    variables = ("AUTHSVC_TLS_CLIENT_CA", "AUTHSVC_TLS_CERT", "AUTHSVC_TLS_KEY")
    # gRPC takes any bytes and does not say what is wrong with them; a client's files have the same faults.
    ClientTls(config.tls_client_ca, config.tls_cert, config.tls_key, variables).context()
    client_ca, certificate, key = (
        path.read_bytes() if path else None for path in (config.tls_client_ca, config.tls_cert, config.tls_key)
    )
    return grpc.ssl_server_credentials([(key or b"", certificate or b"")], client_ca, client_ca is not None)
