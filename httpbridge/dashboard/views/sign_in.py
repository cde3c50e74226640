"""Signing in, with the dashboard token or a link, and out; and slowing down who guesses the token."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from authsvc.runtime.networks import address_group
from httpbridge.dashboard.clients import CLIENT
from httpbridge.dashboard.middleware import LINK_PATH
from httpbridge.dashboard.pages import SESSION, Pages, delete_cookie, read_cookie, set_cookie
from httpbridge.dashboard.sessions import LINK_SECONDS, NAME_CHARACTERS_MAX, SESSION_SECONDS, Sessions, parse_name

WINDOW_SECONDS = 300.0
FAILURES_PER_ADDRESS_MAX = 10
FAILURES_MAX = 200
"""From everywhere."""
WAITING_MAX = 16
"""Responses that are waited for at a time, as each keeps a connection."""

_DELAY_SECONDS_FIRST = 0.25
_DELAY_SECONDS_MAX = 4.0
_LOGGED_EVERY_SECONDS = 60.0

_DEAD_LINK = "This link is too old, or not whole. Sign in here, or have another one made."
_USED_LINK = (
    "This link was used: each signs in once. Sign in here, or have another one made. If it was not you who used it, "
    "change the dashboard token, which ends every session."
)
_UNUSABLE_LINK = "Links cannot be used now, as the dashboard cannot keep in mind which were. Its log says why."
_WRONG_TOKEN = "This is not the dashboard token."  # noqa: S105
_MANY_WRONG_TOKENS = f"{_WRONG_TOKEN} Many wrong ones came; the right one is taken at any time."

_log = structlog.get_logger("httpbridge.dashboard")


class ThrottledError(Exception):
    """Too many wrong tokens came; `retry_after_seconds` says when the next one may be tried."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class LoginThrottle:
    """Counts wrong tokens, by address (of IPv6 by /64), over the last five minutes. `monotonic` is in seconds.

    The right token signs in, however many wrong ones came from the same address. Nobody can guess it: bounded are the
    responses that are waited for, and the log.
    """

    def __init__(
        self, monotonic: Callable[[], float], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._failures: deque[tuple[float, str]] = deque()
        self._waiting = 0
        self._unlogged = 0
        self._log_at = 0.0

    async def failed(self, address: str) -> None:
        """Count a wrong token, and wait: the longer, the more there were from the address. Raises ThrottledError."""
        group = address_group(address)
        now = self._monotonic()
        while self._failures and self._failures[0][0] <= now - WINDOW_SECONDS:
            self._failures.popleft()
        times = [time for time, who in self._failures if who == group]
        if len(times) >= FAILURES_PER_ADDRESS_MAX:
            raise self._refusal(address, now, times[0] + WINDOW_SECONDS - now)
        if len(self._failures) >= FAILURES_MAX:
            raise self._refusal(address, now, self._failures[0][0] + WINDOW_SECONDS - now)
        self._failures.append((now, group))
        if self._waiting >= WAITING_MAX:
            raise self._refusal(address, now, _DELAY_SECONDS_MAX)
        _log.warning("sign_in_refused", address=address)
        self._waiting += 1
        try:
            await self._sleep(min(_DELAY_SECONDS_FIRST * 2 ** (len(times) - 1), _DELAY_SECONDS_MAX) if times else 0.0)
        finally:
            self._waiting -= 1

    def succeeded(self, address: str) -> None:
        """Forget the address's failures: it knows the token."""
        group = address_group(address)
        self._failures = deque(failure for failure in self._failures if failure[1] != group)

    def _refusal(self, address: str, now: float, seconds: float) -> ThrottledError:
        """Log how many there were, once in a while: anybody can send them."""
        self._unlogged += 1
        if now >= self._log_at:
            _log.warning("sign_in_attempts_exhausted", address=address, attempts=self._unlogged)
            self._unlogged, self._log_at = 0, now + _LOGGED_EVERY_SECONDS
        return ThrottledError(math.ceil(seconds))


class SignIn:
    """`/sign-in`, `/sign-in/link` and `/sign-out`."""

    def __init__(self, sessions: Sessions, pages: Pages, throttle: LoginThrottle) -> None:
        self._sessions = sessions
        self._pages = pages
        self._throttle = throttle
        self.routes = [
            web.get("/sign-in", self._show),
            web.post("/sign-in", self._sign_in),
            web.get(LINK_PATH, self._show_link),
            web.post(LINK_PATH, self._use_link),
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
        address = request[CLIENT].address
        if self._sessions.is_token(str(form.get("token", ""))):
            self._throttle.succeeded(address)
            return self._begin(request, name, own_path(next_path))
        try:
            await self._throttle.failed(address)
        except ThrottledError as error:
            response = self._page(request, status=429, name=name, token_error=_MANY_WRONG_TOKENS, next_path=next_path)
            response.headers["Retry-After"] = str(error.retry_after_seconds)
            return response
        return self._page(request, status=403, name=name, token_error=_WRONG_TOKEN, next_path=next_path)

    async def _show_link(self, request: web.Request) -> web.Response:
        """Show whom a link signs in, and a button that does it: whoever looks at links for people uses up none.

        The link itself goes from the address into a cookie, so that it stays in no history. That is sent to the next
        page also when the link stood on another site.
        """
        if (text := request.query.get("t")) is not None:
            response = self._pages.redirect(request, LINK_PATH)
            if self._sessions.read_link(text) is None:
                delete_cookie(request, response, "link")
            else:
                set_cookie(request, response, "link", text, LINK_SECONDS, same_site="Lax")
            return response
        text = read_cookie(request, "link")
        link = self._sessions.read_link(text)
        if link is None:
            return self._page(request, status=403, link_error=_DEAD_LINK)
        if self._sessions.is_used(link):
            return self._page(request, status=403, link_error=_USED_LINK)
        return self._pages.render(request, "sign_in_link.html", link=text, name=link.name)

    async def _use_link(self, request: web.Request) -> web.Response:
        link = self._sessions.read_link(str((await request.post()).get("link", "")))
        if link is None:
            return self._page(request, status=403, link_error=_DEAD_LINK)
        try:
            is_first = self._sessions.use(link)
        except OSError as error:
            _log.error("link_use_not_stored", reason=error.strerror)
            return self._page(request, status=503, link_error=_UNUSABLE_LINK)
        if not is_first:
            _log.warning("used_link_refused", name=link.name, address=request[CLIENT].address)
            return self._page(request, status=403, link_error=_USED_LINK)
        response = self._begin(request, link.name, "/")
        delete_cookie(request, response, "link")
        return response

    async def _sign_out(self, request: web.Request) -> web.Response:
        self._sessions.end(request[SESSION])
        response = self._pages.redirect(request, "/sign-in")
        delete_cookie(request, response, "session")
        return response

    def _begin(self, request: web.Request, name: str, path: str) -> web.Response:
        _log.info("signed_in", name=name, address=request[CLIENT].address)
        response = self._pages.redirect(request, path)
        set_cookie(request, response, "session", self._sessions.begin(name), SESSION_SECONDS)
        return response

    def _page(self, request: web.Request, *, status: int = 200, next_path: str = "", **values: str) -> web.Response:
        """Return the form; `values` are the name, and what is wrong: `name_error`, `token_error`, `link_error`."""
        shown = {"name": "", "name_error": "", "token_error": "", "link_error": ""} | values
        return self._pages.render(request, "sign_in.html", status=status, next_path=own_path(next_path), **shown)


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
