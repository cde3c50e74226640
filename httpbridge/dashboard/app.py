"""Composition root of the dashboard: key service client, log store reader, views, HTTP server.

Called by `cli dashboard`; `serve` runs until it is told to stop.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import cast

from aiohttp import web
from msgspec.structs import replace

from authsvc.client.admin import AdminClient
from authsvc.client.channel import TokenFile, TokenSource
from authsvc.runtime.clock import now
from authsvc.runtime.commands import connections_that_fit
from authsvc.runtime.environment import Address, Secret
from authsvc.runtime.listening import bind, bound_address
from authsvc.runtime.private_files import check_private, load_or_create_token
from httpbridge.config import ADMIN_TOKEN_FILE, DASHBOARD_TOKEN_FILE, Config
from httpbridge.dashboard.connections import CONNECTION_LIMITS, ConnectionLimits, Connections
from httpbridge.dashboard.log_page.page import Logs
from httpbridge.dashboard.log_page.stream import LogStreams
from httpbridge.dashboard.middleware import Middlewares, session_id
from httpbridge.dashboard.pages import DIRECTORY, Pages
from httpbridge.dashboard.sessions import Sessions, Spent
from httpbridge.dashboard.views.api_keys import ApiKeys
from httpbridge.dashboard.views.data import Data
from httpbridge.dashboard.views.origins import AllowedOrigins
from httpbridge.dashboard.views.projects import Projects
from httpbridge.dashboard.views.sign_in import LoginThrottle, SignIn
from httpbridge.http.listener import Listener
from httpbridge.log_store.queries import QUERY_LIMITS, LogQueries, QueryLimits
from httpbridge.log_store.read_store import ReadStore
from httpbridge.tls import key_service_tls, server_tls

_LISTEN = "HTTPBRIDGE_DASHBOARD_LISTEN"
_FORM_BYTES_MAX = 256 * 1024  # 100 origin entries of 260 characters, each escaped, are 80 KB
_OTHER_FILES_MAX = 128
"""Open files besides the connections: of the log store, the key service, the process, and a turn of the listener."""
_SHUTDOWN_SECONDS = 2.0
_STORE_CONNECTIONS_MAX = 4
_STATEMENT_SECONDS_MAX = 5.0


async def serve(
    config: Config,
    stop: asyncio.Event,
    started: Callable[[Address], None],
    *,
    now: Callable[[], datetime] = now,
    limits: ConnectionLimits = CONNECTION_LIMITS,
    query_limits: QueryLimits = QUERY_LIMITS,
) -> None:
    """Serve until `stop` is set.

    `started` is called once, with the bound address, when requests are served. Raises ConfigurationError when the
    dashboard cannot start as configured. Neither the key service nor the log store has to be there.
    """
    config.check_dashboard_exposure()
    tls = server_tls(config)
    sessions = open_sessions(config, now)
    if config.admin_token is None:
        check_private(config.state_dir / ADMIN_TOKEN_FILE)
    async with AsyncExitStack() as stack:
        # Before anything else begins, so that a taken port is all that is said.
        sockets = await stack.enter_async_context(bind(config.dashboard_listen, _LISTEN))
        kept = TokenFile(config.state_dir / ADMIN_TOKEN_FILE, is_private=True)
        token = TokenSource(config.admin_token) if config.admin_token else kept
        admin = AdminClient(config.key_service, token, key_service_tls(config))
        stack.push_async_callback(admin.close)
        store = ReadStore(
            config.store_url(),
            connections_max=_STORE_CONNECTIONS_MAX,
            statement_seconds_max=_STATEMENT_SECONDS_MAX,
        )
        stack.push_async_callback(store.close)
        pages = Pages(sessions, config.clients_url(), now)
        queries = LogQueries(store, monotonic=time.monotonic, limits=query_limits)
        streams = LogStreams(
            store,
            session_id=partial(session_id, sessions),
            markup=pages.macro("log_parts.html", "entry"),
            monotonic=time.monotonic,
        )
        routes = [
            *SignIn(sessions, pages, LoginThrottle(time.monotonic)).routes,
            *Projects(admin, queries, pages, now).routes,
            *Logs(admin, store, queries, streams, pages, now).routes,
            *ApiKeys(admin, pages).routes,
            *AllowedOrigins(admin, store, pages, now).routes,
            *Data(admin, store, config, pages, now).routes,
        ]
        application = web.AppRunner(_application(Middlewares(sessions, pages, config.trusted_proxies), routes))
        stack.push_async_callback(application.cleanup)
        await application.setup()
        server = cast(web.Server, application.server)  # there is one since `setup`
        connections_max = connections_that_fit(limits.connections_max, _OTHER_FILES_MAX)
        keepalive_seconds = config.keepalive_seconds
        limits = replace(limits, connections_max=connections_max, keepalive_seconds=keepalive_seconds)
        connections = Connections(server, config.trusted_proxies, limits)
        stack.push_async_callback(connections.shutdown, _SHUTDOWN_SECONDS)
        stack.push_async_callback(streams.close)
        for bound in sockets:
            address, proxies = config.dashboard_listen, config.trusted_proxies
            listener = Listener(bound, connections, _LISTEN, address, tls=tls, trusted_proxies=proxies)
            stack.callback(listener.close)
        started(bound_address(sockets))
        await stop.wait()


def open_sessions(config: Config, now: Callable[[], datetime] = now) -> Sessions:
    """Return the sessions under the configured token, or the one in the state directory, generated if there is none.

    Raises ConfigurationError.
    """
    if config.dashboard_token is None:
        config.make_state_dir()

    def token() -> Secret:
        return config.dashboard_token or load_or_create_token(config.state_dir / DASHBOARD_TOKEN_FILE)

    token()
    return Sessions(token, Spent(config.state_dir / "signed-out"), Spent(config.state_dir / "used-links"), now)


def _application(middlewares: Middlewares, routes: list[web.RouteDef]) -> web.Application:
    application = web.Application(middlewares=middlewares.in_order, client_max_size=_FORM_BYTES_MAX)
    application.on_response_prepare.append(middlewares.add_headers)
    application.router.add_static("/static", DIRECTORY / "static")
    application.add_routes(routes)
    return application
