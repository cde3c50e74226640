"""The dashboard's connections: aiohttp's, but for what is no request, or what nobody answered. Built by `app`.

aiohttp answers and logs what its parser refuses with the offending bytes, a cookie or a token among them, and says its
version. Here such a request gets a fixed text under the headers of every page, and the connection is closed.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any, NoReturn

import structlog
from aiohttp import hdrs, web

from authsvc.client.event_log import traceback_without_text
from httpbridge.dashboard.guard import SECURITY_HEADERS

_log = structlog.get_logger("httpbridge.dashboard")


class Connection(web.RequestHandler):
    """One client's connection."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - repeats what was sent
    ) -> NoReturn:
        """Answer by the status alone, and end the connection. Neither `message` nor the error's text is ours."""
        if isinstance(exc, ConnectionError):  # who asked is gone, or this was called before
            raise exc
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and exc is not None:
            _log.error("unexpected_error", error=type(exc).__qualname__, traceback=traceback_without_text(exc))
        if self.transport is not None and request.writer.output_size == 0:
            self.transport.write(_answer(HTTPStatus(status)))
        raise ConnectionAbortedError


class Connections(web.Server):
    """Makes connections, whose requests an application's server answers."""

    def __init__(self, application: web.Server, keepalive_seconds: float) -> None:
        self._keepalive_seconds = keepalive_seconds
        super().__init__(self._handle, request_factory=application.request_factory)
        self._answer = application.request_handler
        self._logger = _silent()

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._keepalive_seconds,
            access_log=self._logger,
            logger=self._logger,
        )

    async def _handle(self, request: Any) -> web.StreamResponse:
        # Otherwise aiohttp answers, past the middlewares, with what it does not know.
        expected = request.headers.get(hdrs.EXPECT) or "100-continue"
        if expected.lower() != "100-continue":
            request.protocol.handle_error(request, HTTPStatus.EXPECTATION_FAILED)
        return await self._answer(request)


def _answer(status: HTTPStatus) -> bytes:
    body = f"{status.value} {status.phrase}\n".encode()
    headers = SECURITY_HEADERS | {
        "Cache-Control": "no-store",
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _silent() -> logging.Logger:
    """Return a logger for aiohttp, which would log what it cannot parse, cookies included."""
    logger = logging.getLogger("httpbridge.dashboard.http")
    logger.disabled = True
    return logger
