"""Composition root of the key service: database -> stores -> watch -> servicers -> grpc.aio server."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from authsvc.api.call_guard import CallGuard
from authsvc.api.callers import Callers
from authsvc.api.connections import Connections
from authsvc.api.health import SERVICE_NAME as HEALTH
from authsvc.api.health import HealthService
from authsvc.api.key_service import KeyService
from authsvc.api.limits import CallLimits
from authsvc.api.operations_service import OperationsService
from authsvc.api.project_service import ProjectService
from authsvc.client.channel import ClientTls
from authsvc.config import Config, Tokens
from authsvc.errors import StoreRefusedError
from authsvc.revocation.change_feed import ChangeFeed
from authsvc.revocation.key_cache import KeyCache
from authsvc.revocation.lessor import Holders
from authsvc.revocation.limits import RevocationLimits
from authsvc.revocation.watch import Watch
from authsvc.runtime.clock import boot_clock, now
from authsvc.runtime.commands import connections_that_fit
from authsvc.runtime.control_channel import ControlChannel
from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.listening import bind, cannot_listen
from authsvc.storage.bookmark import Bookmark
from authsvc.storage.database import Database
from authsvc.storage.key_store import SCHEMA_VERSION, KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1 import operations_service_pb2_grpc as operations_pb2_grpc
from authsvc.v1 import project_service_pb2 as project_pb2
from authsvc.v1 import project_service_pb2_grpc as project_pb2_grpc

_SERVICES = tuple(
    service.full_name
    for proto in (pb, project_pb2, operations_pb2)
    for service in proto.DESCRIPTOR.services_by_name.values()
)
# The largest request is a batch of 256 keys and origins of 300 characters, at most 4 bytes each.
_MESSAGE_BYTES_MAX = 512 * 1024
_WAITING_CALLS_MAX = 10_000
_OTHER_FILES_MAX = 100  # the database's, and the system's
_POLL_SECONDS = 0.02  # while calls are under way


async def migrate(config: Config) -> tuple[str | None, str]:
    """Bring the database to this version's schema, if that is not older; return the versions before and after."""
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
    config: Config,
    stop: asyncio.Event,
    started: Callable[[Address], None],
    limits: CallLimits = CallLimits(),
    revocation: RevocationLimits = RevocationLimits(),
    channel: ControlChannel | None = None,
) -> None:
    """Serve until `stop` is set, then drain: new calls are refused, calls under way are answered.

    `started` is called once, with the bound address, when calls are answered. With a control channel to other workers
    the port is shared with them. Raises ConfigurationError when the service cannot start as configured, and
    StoreUnavailableError when the database cannot be reached.
    """
    config.check_exposure()
    limits = replace(limits, connections_max=connections_that_fit(limits.connections_max, _OTHER_FILES_MAX))
    is_shared = channel is not None
    config.make_state_dir()
    tokens = Tokens.of(config)
    async with _database(config) as database:
        await _check_schema(database)
        store = KeyStore(database, now)
        leases = LeaseStore(database, now, config.lease_margin_seconds)
        health = HealthService(_SERVICES)
        bookmark = _bookmark(config, database)
        feed = ChangeFeed(
            database, store, leases, boot_clock, bookmark=bookmark, tell_outage=health.set_serving, limits=revocation
        )
        if channel is not None and not database.notifies:
            feed.tell_others, channel.on_notify = channel.notify, feed.look
        await feed.open()
        proxies = config.trusted_proxies
        lasts = config.lease_seconds, config.lease_margin_seconds
        holders = Holders(limits.holders_max, proxies, sum(lasts), time.monotonic)
        watch = Watch(store, leases, feed, holders, *lasts, time.monotonic, revocation)
        connections = Connections(limits, proxies, time.monotonic)
        callers = Callers(tokens, proxies)
        guard: Any = CallGuard(callers, limits, proxies, time.monotonic, connections.close)
        # The guard bounds calls: gRPC would count those without a token among all.
        server = grpc.aio.server(handlers=[guard], options=_options(limits, is_shared=is_shared))
        cache = KeyCache(store, watch, f"authsvc {socket.gethostname()}:{os.getpid()}", boot_clock)
        key_service = KeyService(store, cache, watch, callers)
        pb_grpc.add_KeyServiceServicer_to_server(key_service, guard)
        project_pb2_grpc.add_ProjectServiceServicer_to_server(ProjectService(store), guard)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsService(store, leases), guard)
        health_pb2_grpc.add_HealthServicer_to_server(health, guard)
        if config.has_reflection:
            names = (*_SERVICES, HEALTH, reflection.SERVICE_NAME)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), guard)
        guard.register(server)
        address = await _listen(server, config, is_shared=is_shared)
        work = (cache.run(), watch.run(), connections.run(address.port, guard.in_use), guard.run(), stop.wait())
        tasks = [asyncio.create_task(each) for each in work]
        await server.start()
        started(address)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            health.stop()
            await cache.leave()
            watch.close()
            await _stop(server, guard, limits)
            await key_service.drain()
            await _end(tasks)


async def _stop(server: grpc.aio.Server, guard: CallGuard, limits: CallLimits) -> None:
    """Finish the calls under way, and wait for nobody else: a holder may be frozen, or cut off."""
    guard.stop()
    stopping = asyncio.create_task(server.stop(limits.drain_seconds))
    while guard.calls and not stopping.done():
        await asyncio.wait([stopping], timeout=_POLL_SECONDS)
    await server.stop(limits.last_responses_seconds)
    await stopping


def _options(limits: CallLimits, *, is_shared: bool) -> tuple[tuple[str, int], ...]:
    timeout_ms = round(limits.keepalive_timeout_seconds * 1000)
    return (
        # Else a taken port is an error, not a second service that gets half of the calls.
        ("grpc.so_reuseport", int(is_shared)),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", limits.connection_calls_max),
        # The next one is closed as it comes; without this, when no open file is left, and the database lacks one too.
        ("grpc.max_allowed_incoming_connections", limits.connections_max),
        # gRPC hands calls over in order, and turns some of them away, whosever they are, when so many wait for that.
        ("grpc.server.max_pending_requests", _WAITING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _WAITING_CALLS_MAX),
        ("grpc.max_connection_idle_ms", round(limits.connection_idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_seconds * 1000)),
        ("grpc.keepalive_time_ms", round(limits.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # else a minute: the one above holds for the socket alone
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(limits.ping_seconds_min * 1000)),
    )


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel them; raise what one of them failed with."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[Database]:
    if config.database_url is None:
        config.make_state_dir()
    database = Database(config.store_url())
    _bookmark(config, database).check_file()
    try:
        await database.open()
        yield database
    except StoreRefusedError as error:  # at the start: later ones become statuses of calls
        where = f"{database.file.path}: " if database.file is not None else ""
        raise ConfigurationError(f"{config.store_variable}: {where}{error.reason}") from None
    finally:
        await database.close()


def _bookmark(config: Config, database: Database) -> Bookmark:
    return Bookmark(config.state_dir, database.file.path if database.file else None)


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


async def _listen(server: grpc.aio.Server, config: Config, *, is_shared: bool) -> Address:
    # gRPC does not say why an address cannot be listened on, and prints it at length.
    async with bind(config.listen, "AUTHSVC_LISTEN", is_shared=is_shared):
        pass
    # gRPC takes IPv4, too, where it listens on every address of IPv6, and IPv4 alone where there is no IPv6.
    listen = str(config.listen) if config.listen.host_to_bind else f"[::]:{config.listen.port}"
    try:
        if config.tls_cert is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, _credentials(config))
    except RuntimeError:
        raise cannot_listen("AUTHSVC_LISTEN", config.listen, "gRPC cannot use this address") from None
    return Address(config.listen.host, port)


def _credentials(config: Config) -> grpc.ServerCredentials:
    """Return what gRPC serves TLS with, 1.2 or later; raise ConfigurationError naming the file that is wrong."""
    variables = ("AUTHSVC_TLS_CLIENT_CA", "AUTHSVC_TLS_CERT", "AUTHSVC_TLS_KEY")
    # gRPC takes any bytes and does not say what is wrong with them; a client's files have the same faults.
    client_ca, certificate, key = ClientTls(config.tls_client_ca, config.tls_cert, config.tls_key, variables).read()
    return grpc.ssl_server_credentials([(key or b"", certificate or b"")], client_ca, client_ca is not None)
