"""Composition root of the dashboard: key service client, log store reader, views, HTTP server.

Called by `cli dashboard`; `serve` runs until it is told to stop.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import cast

from aiohttp import web

from authsvc.client.admin import AdminClient
from authsvc.client.channel import FixedToken, TokenFile
from authsvc.client.environment import Address, ConfigurationError, Secret, kept_token
from authsvc.client.listening import cannot_listen
from httpbridge.config import ADMIN_TOKEN_FILE, DASHBOARD_TOKEN_FILE, Config
from httpbridge.dashboard.api_keys import ApiKeys, KeyReveal
from httpbridge.dashboard.attempts import Attempts
from httpbridge.dashboard.audit import Audit
from httpbridge.dashboard.connections import Connections
from httpbridge.dashboard.guard import Guard, session_id
from httpbridge.dashboard.log_stream import LogStreams
from httpbridge.dashboard.logs import Logs
from httpbridge.dashboard.origins import AllowedOrigins
from httpbridge.dashboard.pages import FOLDER, Pages, Views
from httpbridge.dashboard.projects import Projects
from httpbridge.dashboard.sessions import Sessions
from httpbridge.dashboard.sign_in import SignIn
from httpbridge.dashboard.signed_out import SignedOut
from httpbridge.sinks.log_queries import LogQueries
from httpbridge.sinks.read_store import ReadStore
from httpbridge.tls import key_service_tls, server_tls

_FORM_BYTES_MAX = 256 * 1024  # 100 origin entries of 260 characters, each escaped, are 80 KB
_SHUTDOWN_SECONDS = 2.0
_STORE_CONNECTIONS_MAX = 4
_STATEMENT_SECONDS_MAX = 5.0


def now() -> datetime:
    """Return the instant: aware, UTC."""
    return datetime.now(UTC)


async def serve(config: Config, stop: asyncio.Event, started: Callable[[Address], None]) -> None:
    """Serve until `stop` is set.

    `started` is called once, with the bound address, when requests are answered. Raises ConfigurationError when the
    dashboard cannot start as configured. Neither the key service nor the log store has to be there.
    """
    config.check_dashboard_exposure()
    tls = server_tls(config)
    sessions = open_sessions(config)
    async with AsyncExitStack() as stack:
        token = FixedToken(config.admin_token) if config.admin_token else TokenFile(config.state_dir / ADMIN_TOKEN_FILE)
        admin = AdminClient(config.key_service, token, key_service_tls(config))
        stack.push_async_callback(admin.close)
        store = ReadStore(
            config.sink_url(),
            connections_max=_STORE_CONNECTIONS_MAX,
            statement_seconds_max=_STATEMENT_SECONDS_MAX,
        )
        stack.push_async_callback(store.close)
        pages = Pages(sessions, now)
        reveal = KeyReveal(pages, config.clients_url())
        queries = LogQueries(store, monotonic=time.monotonic)
        streams = LogStreams(store, session_id=partial(session_id, sessions), monotonic=time.monotonic)
        views: list[Views] = [
            SignIn(sessions, pages, Attempts(time.monotonic)),
            Projects(admin, queries, pages, reveal, now),
            Logs(admin, store, queries, streams, pages, config.clients_url(), now),
            ApiKeys(admin, pages, reveal),
            AllowedOrigins(admin, store, pages, config.clients_url(), now),
            Audit(admin, pages),
        ]
        application = web.AppRunner(_application(Guard(sessions, pages), views))
        stack.push_async_callback(application.cleanup)
        await application.setup()
        server = cast(web.Server, application.server)  # there is one since `setup`
        runner = web.ServerRunner(Connections(server, config.keepalive_seconds), shutdown_timeout=_SHUTDOWN_SECONDS)
        stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(streams.close)
        await runner.setup()
        address = config.dashboard_listen
        try:
            await web.TCPSite(runner, address.host, address.port, ssl_context=tls).start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise cannot_listen("HTTPBRIDGE_DASHBOARD_LISTEN", address, reason) from None
        host, port = runner.addresses[0][:2]
        started(Address(host, port))
        await stop.wait()


def open_sessions(config: Config, now: Callable[[], datetime] = now) -> Sessions:
    """Return the sessions under the configured token, or the one in the state folder, generated if there is none.

    Raises ConfigurationError.
    """
    try:
        if config.dashboard_token is None:
            config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"HTTPBRIDGE_STATE_DIR: {config.state_dir}: {error.strerror}") from None

    def token() -> Secret:
        return config.dashboard_token or kept_token(config.state_dir / DASHBOARD_TOKEN_FILE)

    token()
    return Sessions(token, SignedOut(config.state_dir), now)


def _application(guard: Guard, views: list[Views]) -> web.Application:
    application = web.Application(middlewares=guard.middlewares(), client_max_size=_FORM_BYTES_MAX)
    application.on_response_prepare.append(guard.add_headers)
    application.router.add_static("/static", FOLDER / "static")
    for view in views:
        application.add_routes(view.routes())
    return application
