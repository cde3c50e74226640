"""Composition root of the bridge: key service client, log sink, public server."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from authsvc.client.channel import TokenFile, TokenSource
from authsvc.client.validator import KeyServiceState, KeyValidator
from authsvc.client.verdict_cache import CacheLimits, VerdictCache
from authsvc.runtime.clock import now
from authsvc.runtime.commands import connections_that_fit
from authsvc.runtime.environment import Address
from authsvc.runtime.listening import bind, bound_address
from httpbridge.config import BRIDGE_TOKEN_FILE, Config
from httpbridge.errors import StoreUnavailableError
from httpbridge.http.bodies import BUDGET_BYTES, KEY_BUDGET_BYTES, Budget
from httpbridge.http.listener import Listener
from httpbridge.http.request import Router
from httpbridge.http.responses import Response, ready
from httpbridge.http.server import CONNECTIONS_MAX, HEALTH_CONNECTIONS_MAX, PublicServer, ServerLimits
from httpbridge.ingest.handler import Ingest, RateLimit
from httpbridge.ingest.origin_counts import OriginCounts
from httpbridge.log_store import LogSink
from httpbridge.log_store.maintenance import Maintenance
from httpbridge.log_store.origin_store import OriginStore
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import Retention
from httpbridge.log_store.sink import SqlSink, open_sink, store_at
from httpbridge.log_store.writer_client import RemoteStore
from httpbridge.tls import key_service_tls, server_tls

_LISTEN = "HTTPBRIDGE_LISTEN"
_OTHER_FILES_MAX = 100
"""Open files besides the public connections: the log store, the key service, the process's own."""
# Between failing /ready and closing the listener: long enough for a load balancer that looks every second.
_NOTICE_SECONDS = 1.0
_DRAIN_SECONDS = 10.0

_READINESS = {
    KeyServiceState.NEVER_REACHED: ready("unavailable", "the key service has not been reached yet"),
    KeyServiceState.AWAY: ready("unavailable", "the key service is away, and no verdict is cached"),
    KeyServiceState.AWAY_CACHED: ready("degraded", "the key service is away; cached verdicts serve"),
    KeyServiceState.NO_LEASE: ready("degraded", "there is no lease; each request asks the key service"),
    KeyServiceState.OK: ready("ok"),
}
_STORE_REFUSES = ready("unavailable", "the log store refuses writes")
"""While the log store takes logs."""


async def serve(
    config: Config,
    stop: asyncio.Event,
    started: Callable[[Address], None],
    *,
    is_worker: bool = False,
    log_writer: Path | None = None,
) -> None:
    """Serve until `stop` is set, then drain: each request that was read gets its response, each batch taken is stored.

    `started` is called once, with the bound address, when requests are served. A worker shares the port with others,
    and stores by way of the log writer that listens on the socket `log_writer`, if there is one. Raises
    ConfigurationError and StoreSetupError when the bridge cannot start as configured.
    """
    config.check_exposure()
    tls = server_tls(config)
    connections_max = connections_that_fit(CONNECTIONS_MAX, _OTHER_FILES_MAX + HEALTH_CONNECTIONS_MAX)
    async with AsyncExitStack() as stack:
        # Before anything else begins, so that a taken port is all that is said.
        sockets = await stack.enter_async_context(bind(config.listen, _LISTEN, is_shared=is_worker))
        validator = _validator(config)
        stack.push_async_callback(validator.close)
        validator.start()
        sink = await _open_sink(config, log_writer, stack)
        origins = OriginCounts(
            OriginStore(config.store_url(), sink.check) if log_writer is None else RemoteStore(log_writer),
            now=now,
        )
        stack.push_async_callback(origins.close)
        origins.start()
        largest_bytes = 2 * config.body_bytes_max  # as it comes and inflated
        ingest = Ingest(
            validator=validator,
            count_origin=origins.count,
            rate_limit=RateLimit(config.rate_limit_per_minute, config.bytes_per_minute, now),
            sink=sink,
            now=now,
            body_bytes_max=config.body_bytes_max,
            body_budget=Budget(max(BUDGET_BYTES, largest_bytes), max(KEY_BUDGET_BYTES, largest_bytes)),
        )
        router = Router(
            ingest=ingest.handle,
            readiness=partial(_readiness, validator, sink),
            now=now,
            monotonic=time.monotonic,
            trusted_proxies=config.trusted_proxies,
        )
        limits = ServerLimits(connections_max, config.keepalive_seconds, body_bytes_max=config.body_bytes_max)
        server = PublicServer(router, limits, config.trusted_proxies)
        listeners: list[Listener] = []
        try:
            listeners.extend(
                Listener(bound, server, _LISTEN, config.listen, tls=tls, trusted_proxies=config.trusted_proxies)
                for bound in sockets
            )
            started(bound_address(sockets))
            await stop.wait()
            server.drain()
            await asyncio.sleep(_NOTICE_SECONDS)
        finally:
            for listener in listeners:
                listener.close()
            await server.shutdown(_DRAIN_SECONDS)


async def _readiness(validator: KeyValidator, sink: LogSink) -> Response:
    """Say whether logs can be taken; the reasons are public, so the details are in the log only."""
    response = _READINESS[await validator.state()]
    if response.status == 200:
        try:
            await sink.check()
        except StoreUnavailableError:
            return _STORE_REFUSES
    return response


def _validator(config: Config) -> KeyValidator:
    token = config.key_service_token
    return KeyValidator(
        config.key_service,
        TokenSource(token) if token else TokenFile(config.state_dir / BRIDGE_TOKEN_FILE, is_private=True),
        tls=key_service_tls(config),
        cache=VerdictCache(CacheLimits(ttl_seconds_max=config.cache_ttl_seconds)),
    )


async def _open_sink(config: Config, log_writer: Path | None, stack: AsyncExitStack) -> LogSink:
    """Open the sink, and maintain its store unless the log writer does."""
    if log_writer is not None:
        sink = SqlSink(RemoteStore(log_writer), monotonic=time.monotonic)
        stack.push_async_callback(sink.close)
        return sink
    config.make_store_dir()
    store = store_at(config.store_url())
    sink = await open_sink(store, monotonic=time.monotonic)
    stack.push_async_callback(sink.close)
    reader = ReadStore(config.store_url())
    retention = Retention(config.retention_days, config.store_bytes_max)
    maintenance = Maintenance(store, reader, retention, monotonic=time.monotonic)
    stack.push_async_callback(maintenance.close)
    maintenance.start()
    return sink
