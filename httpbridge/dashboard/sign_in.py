"""Signing in, with the dashboard token or a link, and out."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from httpbridge.dashboard.attempts import Attempts, TooManyAttemptsError
from httpbridge.dashboard.guard import SESSION_COOKIE, set_cookie
from httpbridge.dashboard.pages import Pages, counted, session_of
from httpbridge.dashboard.sessions import NAME_CHARACTERS_MAX, Sessions, parse_name

_DEAD_LINK = "This link is too old, or not whole. Sign in here, or ask for a new link."

_log = structlog.get_logger("httpbridge.dashboard")


class SignIn:
    """`/sign-in`, `/sign-in/link` and `/sign-out`."""

    def __init__(
        self,
        sessions: Sessions,
        pages: Pages,
        attempts: Attempts,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sessions = sessions
        self._pages = pages
        self._attempts = attempts
        self._sleep = sleep

    def routes(self) -> list[web.RouteDef]:
        """Return them."""
        return [
            web.get("/sign-in", self._show),
            web.post("/sign-in", self._sign_in),
            web.get("/sign-in/link", self._follow_link),
            web.post("/sign-out", self._sign_out),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        return self._page(request, next_path=request.query.get("next", ""))

    async def _sign_in(self, request: web.Request) -> web.Response:
        form = await request.post()
        name, next_path = str(form.get("name", "")), str(form.get("next", ""))
        try:
            name = parse_name(name)
        except ValueError as error:
            kept = name[:NAME_CHARACTERS_MAX]
            return self._page(request, status=400, name=kept, name_error=str(error), next_path=next_path)
        address = request.remote or ""
        try:
            await self._sleep(self._attempts.begin(address))
        except TooManyAttemptsError as error:
            minutes = counted(math.ceil(error.retry_after_seconds / 60), "minute")
            _log.warning("sign_in_attempts_exhausted", address=address)
            response = self._page(
                request,
                status=429,
                name=name,
                token_error=f"Too many attempts. Try again in {minutes}.",
                next_path=next_path,
            )
            response.headers["Retry-After"] = str(error.retry_after_seconds)
            return response
        if not self._sessions.is_token(str(form.get("token", ""))):
            _log.warning("sign_in_refused", address=address)
            error_text = "This is not the dashboard token."
            return self._page(request, status=403, name=name, token_error=error_text, next_path=next_path)
        self._attempts.succeeded(address)
        return self._begin(request, name, own_path(next_path))

    async def _follow_link(self, request: web.Request) -> web.Response:
        name = self._sessions.name_of_link(request.query.get("t", ""))
        if name is None:
            return self._page(request, status=403, link_error=_DEAD_LINK)
        return self._begin(request, name, "/")

    async def _sign_out(self, request: web.Request) -> web.Response:
        self._sessions.end(session_of(request))
        response = self._pages.redirect(request, "/sign-in")
        response.del_cookie(SESSION_COOKIE)
        return response

    def _begin(self, request: web.Request, name: str, path: str) -> web.Response:
        _log.info("signed_in", name=name, address=request.remote)
        response = self._pages.redirect(request, path)
        set_cookie(request, response, SESSION_COOKIE, self._sessions.begin(name))
        return response

    def _page(
        self,
        request: web.Request,
        *,
        status: int = 200,
        name: str = "",
        name_error: str = "",
        token_error: str = "",
        link_error: str = "",
        next_path: str = "",
    ) -> web.Response:
        return self._pages.render(
            request,
            "sign_in.html",
            status=status,
            name=name,
            name_error=name_error,
            token_error=token_error,
            link_error=link_error,
            next_path=own_path(next_path),
        )


def own_path(path: str) -> str:
    """Return a path of ours, to go to after signing in: anything that a browser may take for another site is `/`."""
    is_plain = path.isascii() and path.isprintable() and "\\" not in path and len(path) <= 2000
    if not is_plain or not path.startswith("/") or path.startswith(("//", "/sign-")):
        return "/"
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc else path
