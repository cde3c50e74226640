"""What stands between the network and every view: security headers, failures as pages, sessions, form tokens.

Built by `app`, as the application's middlewares.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import MultiDictProxy

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import Refusal, RefusedError
from authsvc.client.environment import ConfigurationError
from authsvc.client.event_log import traceback_without_text
from httpbridge.dashboard.pages import SESSION, VISITOR, Pages, is_https, sentence
from httpbridge.dashboard.sessions import SESSION_SECONDS, Sessions
from httpbridge.errors import StoreUnavailableError
from httpbridge.sinks import StoreSetupError
from httpbridge.sinks.read_store import StoreSlowError

SESSION_COOKIE = "dashboard_session"
VISITOR_COOKIE = "dashboard_visitor"
FORM_SECONDS_MAX = 20.0
"""How long a form may take to arrive: 256 KiB on a slow phone."""

OPEN_PATHS = ("/sign-in", "/static/")

STREAM_OVER = "event: over\ndata: \n\n"
"""Says to a live tail that the session is over; when it connects again, too, as it cannot read a page."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_PROJECT_ID = re.compile("[a-z0-9-]{1,63}")

_READING = ("GET", "HEAD")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger("httpbridge.dashboard")


class Guard:
    """The middlewares, outermost first."""

    def __init__(self, sessions: Sessions, pages: Pages) -> None:
        self._sessions = sessions
        self._pages = pages

    def middlewares(self) -> list[Middleware]:
        """Return them."""
        return [self._failures, self._session, self._form]

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer carries; for the signal `on_response_prepare`, which streams pass too."""
        response.headers.update(SECURITY_HEADERS)
        response.headers.pop("Server", None)  # aiohttp's version, and Python's
        is_static = request.path.startswith("/static/")
        response.headers["Cache-Control"] = "no-cache" if is_static else "no-store"

    @web.middleware
    async def _failures(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as answer:
            return self._http(request, answer)
        except KeyServiceUnavailableError as error:
            return self._out_of_reach(request, "key_service_down.html", error)
        except StoreSlowError as error:
            return self._out_of_reach(request, "log_store_slow.html", error)
        except (StoreUnavailableError, StoreSetupError) as error:
            return self._out_of_reach(request, "log_store_down.html", error)
        except RefusedError as error:
            is_absent = error.refusal is Refusal.NOT_FOUND or request.method in _READING  # what an address names
            status, title = (404, "Not found") if is_absent else (409, "Refused")
            return self._failure(request, status, title, f"The key service says: {sentence(str(error))}")
        except ConnectionError:  # who asked is gone
            raise
        except ConfigurationError as error:  # a TLS or token file that was replaced by something else
            _log.error("not_set_up", reason=str(error))
            # Without what the dashboard token signs, as that may be the one.
            for known in (SESSION, VISITOR):
                request.pop(known, None)
            return self._failure(request, 503, "Not set up", str(error))
        except Exception as error:  # noqa: BLE001 - shown as a page that says nothing of it
            # Neither the path nor the error's text is ours: they may repeat what somebody sent.
            name, traceback = type(error).__qualname__, traceback_without_text(error)
            _log.error("unexpected_error", error=name, method=request.method, traceback=traceback)
            return self._failure(request, 500, "Something went wrong", "The dashboard's log says what. Try again.")

    def _out_of_reach(self, request: web.Request, template: str, error: Exception) -> web.Response:
        # Of a project that may exist; its other pages may work.
        named = request.match_info.get("project", "")
        project_id = named if _PROJECT_ID.fullmatch(named) else ""
        return self._pages.render(request, template, status=503, project_id=project_id, reason=str(error))

    def _http(self, request: web.Request, answer: web.HTTPException) -> web.StreamResponse:
        if answer.status < 400:
            raise answer
        match answer.status:
            case 404:
                return self._failure(request, 404, "Not found", "There is no such page.")
            case 405:
                response = self._failure(request, 405, "Not possible", "This page takes no such request.")
                response.headers["Allow"] = answer.headers["Allow"]
                return response
            case 413:
                return self._failure(request, 413, "Too large", "This is more than a form here can hold.")
        return self._failure(request, answer.status, "Not possible", answer.text or answer.reason)

    def _failure(self, request: web.Request, status: int, title: str, text: str) -> web.Response:
        return self._pages.render(request, "failure.html", status=status, title=title, text=text)

    @web.middleware
    async def _session(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path.startswith("/static/"):
            return await handler(request)
        session = self._sessions.read(request.cookies.get(SESSION_COOKIE))
        if session is not None:
            request[SESSION] = session
            request[VISITOR] = session.session_id
            return await handler(request)
        if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
            # SameSite=Strict kept the cookie back, because the link was on another site. The page loads itself again,
            # and then the request is our own.
            return self._pages.render(request, "again.html")
        if not request.path.startswith(OPEN_PATHS):
            if request.method in _READING:
                if request.path.endswith("/logs/stream"):
                    return web.Response(text=STREAM_OVER, content_type="text/event-stream", charset="utf-8")
                return web.Response(status=303, headers={"Location": sign_in_location(request.path_qs)})
            fields = await _fields_to_send_again(request)
            return self._pages.render(request, "session_over.html", status=403, fields=fields)
        visitor = request.cookies.get(VISITOR_COOKIE, "")
        if not visitor.isalnum() or len(visitor) != 32:
            visitor = secrets.token_hex(16)
        request[VISITOR] = visitor
        response = await handler(request)
        if not response.prepared:
            set_cookie(request, response, VISITOR_COOKIE, visitor)
        return response

    @web.middleware
    async def _form(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.method != "POST" or request.path.startswith("/static/"):
            return await handler(request)
        presented = (await _form_of(request)).get("form_token", "")
        if isinstance(presented, str) and self._sessions.is_form_token(request[VISITOR], presented):
            return await handler(request)
        may_send_again = SESSION in request and not request.path.startswith(OPEN_PATHS)  # a token is typed once
        fields = await _fields_to_send_again(request) if may_send_again else []
        return self._pages.render(request, "other_sign_in.html", status=403, fields=fields)


async def _form_of(request: web.Request) -> MultiDictProxy[str | bytes | bytearray | web.FileField]:
    """Read a form; raise HTTPBadRequest for what is none, and for files, which no form here has."""
    refusal = web.HTTPBadRequest(text="This is not what a form here sends.")
    if request.content_type != "application/x-www-form-urlencoded":
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


async def _fields_to_send_again(request: web.Request) -> list[tuple[str, str]]:
    """Return the fields of a form that was not taken, for a page that offers to send it again; none of another site's.

    A person confirms it there, but would not know what another site put into the form. Browsers say whose it is where
    the dashboard is reached by HTTPS or on this machine.
    """
    if request.headers.get("Sec-Fetch-Site") != "same-origin":
        return []
    form = await _form_of(request)
    return [(name, value) for name, value in form.items() if name != "form_token" and isinstance(value, str)]


def session_id(sessions: Sessions, request: web.Request) -> str | None:
    """Return the id of a request's session; None when it does not hold, or not any more while it is being answered."""
    session = sessions.read(request.cookies.get(SESSION_COOKIE))
    return None if session is None else session.session_id


def sign_in_location(next_path: str) -> str:
    """Return where to sign in, to go on to a page of ours."""
    return "/sign-in" if next_path == "/" else f"/sign-in?next={quote(next_path, safe='/')}"


def set_cookie(
    request: web.Request, response: web.StreamResponse, name: str, value: str, seconds: int = SESSION_SECONDS
) -> None:
    """Set a cookie that scripts cannot read and other sites cannot make the browser send."""
    response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="Strict", secure=is_https(request))
