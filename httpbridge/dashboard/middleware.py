"""What stands between the network and every view: security headers, failures as pages, sessions, CSRF tokens."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware
from multidict import MultiDictProxy

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import RefusedError
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.logging import log_unexpected
from authsvc.runtime.networks import Networks
from httpbridge.dashboard.clients import CLIENT, client_of
from httpbridge.dashboard.pages import CSRF_SUBJECT, SESSION, Pages, read_cookie, sentence, set_cookie
from httpbridge.dashboard.sessions import SESSION_SECONDS, Session, Sessions
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.read_store import StoreSlowError

FORM_SECONDS_MAX = 20.0
"""How long a form may take to arrive: 256 KiB on a slow phone."""

OPEN_PATHS = ("/sign-in", "/static/")
LINK_PATH = "/sign-in/link"

STREAM_OVER = "event: over\ndata: \n\n"
"""Says to a live tail that the session is over, when it connects again: it cannot read a page."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without a referrer browsers send forms of ours without an origin, too
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_PROJECT_ID = re.compile("[a-z0-9-]{1,63}")

_HSTS_SECONDS = 365 * 86_400
"""So long browsers come by nothing but HTTPS, to any port of the host."""

_READING = ("GET", "HEAD")

_FROM_ANOTHER_SITE = (
    "What was sent does not come from a page of this dashboard. If it does, the dashboard does not know the address by "
    "which you reach it: the proxy in front has to pass on the header Host, port included, or to send X-Forwarded-Host "
    "and stand in HTTPBRIDGE_TRUSTED_PROXIES."
)

_REFUSALS = {
    404: ("Not found", "There is no such page."),
    405: ("Not possible", "This page takes no such request."),
    413: ("Too large", "This is more than a form here can hold."),
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger("httpbridge.dashboard")


class Middlewares:
    """The middlewares; `in_order`, the outermost is first."""

    def __init__(self, sessions: Sessions, pages: Pages, trusted_proxies: Networks) -> None:
        self._sessions = sessions
        self._pages = pages
        self._trusted_proxies = trusted_proxies
        self.in_order: list[Middleware] = [self._failures, self._site, self._session, self._form]

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every response carries; for the signal `on_response_prepare`, which streams pass too."""
        response.headers.update(SECURITY_HEADERS)
        if request[CLIENT].is_pinned:
            response.headers["Strict-Transport-Security"] = f"max-age={_HSTS_SECONDS}"
        response.headers.pop("Server", None)  # aiohttp's version, and Python's
        is_static = request.path.startswith("/static/")
        response.headers["Cache-Control"] = "no-cache" if is_static else "no-store"

    @web.middleware
    async def _failures(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        request[CLIENT] = client_of(request, self._trusted_proxies)
        try:
            return await handler(request)
        except web.HTTPException as refusal:
            return self._http(request, refusal)
        except KeyServiceUnavailableError as error:
            return self._unavailable(request, "key_service_down.html", error)
        except StoreSlowError as error:
            return self._unavailable(request, "log_store_slow.html", error)
        except (StoreUnavailableError, StoreSetupError) as error:
            return self._unavailable(request, "log_store_down.html", error)
        except RefusedError as error:
            is_absent = error.status == "NOT_FOUND" or request.method in _READING  # what an address names
            status, title = (404, "Not found") if is_absent else (409, "Refused")
            return self._failure(request, status, title, f"The key service says: {sentence(str(error))}")
        except ConnectionError:  # the client is gone
            raise
        except ConfigurationError as error:  # a TLS or token file that was replaced by something else
            _log.error("not_set_up", reason=str(error))
            # Without what the dashboard token signs, as that may be the one.
            for known in (SESSION, CSRF_SUBJECT):
                request.pop(known, None)
            return self._failure(request, 503, "Not set up", str(error))
        except Exception as error:  # noqa: BLE001 - shown as a page that says nothing of it
            log_unexpected(_log, error, method=request.method)  # not the path, which may repeat what somebody sent
            return self._failure(request, 500, "Something went wrong", "The dashboard's log says what. Try again.")

    def _unavailable(self, request: web.Request, template: str, error: Exception) -> web.Response:
        # Of a project that may exist; its other pages may work.
        named = request.match_info.get("project", "")
        project_id = named if _PROJECT_ID.fullmatch(named) else ""
        return self._pages.render(request, template, status=503, project_id=project_id, reason=str(error))

    def _http(self, request: web.Request, refusal: web.HTTPException) -> web.StreamResponse:
        if refusal.status < 400:
            raise refusal
        title, text = _REFUSALS.get(refusal.status, ("Not possible", refusal.text or refusal.reason))
        response = self._failure(request, refusal.status, title, text)
        if hdrs.ALLOW in refusal.headers:
            response.headers[hdrs.ALLOW] = refusal.headers[hdrs.ALLOW]
        return response

    def _failure(self, request: web.Request, status: int, title: str, text: str) -> web.Response:
        return self._pages.render(request, "failure.html", status=status, title=title, text=text)

    @web.middleware
    async def _site(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.method in _READING or request[CLIENT].site(request) != "another":
            return await handler(request)
        return self._failure(request, 403, "Nothing was changed", _FROM_ANOTHER_SITE)

    @web.middleware
    async def _session(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path.startswith("/static/"):
            return await handler(request)
        session = self._sessions.read(read_cookie(request, "session"))
        if session is not None:
            request[SESSION] = session
            request[CSRF_SUBJECT] = session.session_id
            response = await handler(request)
            self._refresh(request, response, session)
            return response
        is_link = request.path == LINK_PATH and "t" in request.query  # which is to leave the address first
        if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site" and not is_link:
            # SameSite=Strict kept the cookie back, because the link was on another site. The page loads itself again,
            # and then the request is our own.
            return self._pages.render(request, "again.html")
        if not request.path.startswith(OPEN_PATHS):
            if request.method in _READING:
                if _is_stream(request):
                    return web.Response(text=STREAM_OVER, content_type="text/event-stream", charset="utf-8")
                # What is none of our pages may be a secret that somebody pasted: it is not repeated.
                next_path = "/" if request.match_info.http_exception is not None else request.path_qs
                return web.Response(status=303, headers={"Location": _sign_in_location(next_path)})
            fields = await _fields_to_send_again(request)
            return self._pages.render(request, "session_over.html", status=403, fields=fields)
        pre_session = read_cookie(request, "pre_session") or ""
        if not pre_session.isalnum() or len(pre_session) != 32:
            pre_session = secrets.token_hex(16)
        request[CSRF_SUBJECT] = pre_session
        response = await handler(request)
        if not response.prepared:
            set_cookie(request, response, "pre_session", pre_session, SESSION_SECONDS)
        return response

    def _refresh(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Note that the session is used, in its cookie; by a person, which live tails are not."""
        is_set = request[CLIENT].cookie("session") in response.cookies  # signed out, or anew
        if is_set or response.prepared or _is_stream(request):
            return
        if (cookie := self._sessions.refreshed(session)) is not None:
            set_cookie(request, response, "session", cookie, SESSION_SECONDS)

    @web.middleware
    async def _form(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.method != "POST" or request.path.startswith("/static/"):
            return await handler(request)
        presented = (await _form_of(request)).get("csrf_token", "")
        if isinstance(presented, str) and self._sessions.is_csrf_token(request[CSRF_SUBJECT], presented):
            return await handler(request)
        may_send_again = SESSION in request and not request.path.startswith(OPEN_PATHS)  # a token is typed once
        fields = await _fields_to_send_again(request) if may_send_again else []
        return self._pages.render(request, "other_sign_in.html", status=403, fields=fields)


async def _form_of(request: web.Request) -> MultiDictProxy[str | bytes | bytearray | web.FileField]:
    """Read a form; raise HTTPBadRequest for what is none, and for files, which no form here has."""
    refusal = web.HTTPBadRequest(text="This is not what a form here sends.")
    if request.content_type != "application/x-www-form-urlencoded" or hdrs.CONTENT_ENCODING in request.headers:
        raise refusal
    # Python decodes more than characters, some of it in quadratic time; browsers name no character set at all.
    if (request.charset or "utf-8").lower() != "utf-8":
        raise web.HTTPBadRequest(text="Forms are taken in UTF-8, and in no other character set.")
    try:
        async with asyncio.timeout(FORM_SECONDS_MAX):
            return await request.post()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The form took too long to arrive.") from None
    except (ValueError, web.RequestPayloadError):  # not UTF-8, not gzip
        raise refusal from None
    except RuntimeError:
        if request.transport is not None:
            raise
        raise refusal from None  # aiohttp's word for a sender that has gone; nobody reads it


async def _fields_to_send_again(request: web.Request) -> list[tuple[str, str]]:
    """Return the fields of a form that was not taken, for a page that offers to send it again; none of another site's.

    A person confirms it there, but would not know what another site put into the form.
    """
    if request[CLIENT].site(request) != "ours":
        return []
    form = await _form_of(request)
    return [(name, value) for name, value in form.items() if name != "csrf_token" and isinstance(value, str)]


def session_id(sessions: Sessions, request: web.Request) -> str | None:
    """Return the id of a request's session; None when it does not hold, or ends before the response does."""
    session = sessions.read(read_cookie(request, "session"))
    return None if session is None else session.session_id


def _is_stream(request: web.Request) -> bool:
    return request.path.endswith("/logs/stream")


def _sign_in_location(next_path: str) -> str:
    return "/sign-in" if next_path == "/" else f"/sign-in?next={quote(next_path, safe='/')}"
