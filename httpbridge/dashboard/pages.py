"""Rendering: templates, and what every page gets. Used by `guard` and all views.

Templates are escaped throughout. A page of a project extends `project.html`, another
one `base.html`.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from httpbridge.dashboard.clients import CLIENT
from httpbridge.dashboard.sessions import NOTICE_SECONDS, Session, Sessions

DIRECTORY = Path(__file__).parent
VISITOR = web.RequestKey("visitor", str)
"""Whom the forms of this request's page are for: the session's id, or on the way in a random one."""
SESSION = web.RequestKey("session", Session)


class Views(Protocol):
    """A part of the dashboard: its routes, added by the composition root."""

    def routes(self) -> list[web.RouteDef]:
        """Return them."""


class Pages:
    """Makes responses of templates."""

    def __init__(self, sessions: Sessions, now: Callable[[], datetime]) -> None:
        """`now` gives aware instants."""
        self._sessions = sessions
        self._now = now
        self._environment = Environment(
            loader=FileSystemLoader(DIRECTORY / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._environment.filters["instant"] = instant
        self._environment.filters["whole_second"] = whole_second
        self._environment.filters["age"] = self._age
        self._environment.filters["counted"] = counted
        self._environment.filters["sentence"] = sentence

    def render(self, request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """Return a page. Templates also see `session`, `csrf_token` and `notice`."""
        session = request.get(SESSION)
        visitor = request.get(VISITOR)
        # Escaped when it was signed.
        notice = Markup(self._sessions.read_notice(read_cookie(request, "notice")) if session else "")  # noqa: S704
        text = self._environment.get_template(template).render(
            session=session,
            csrf_token=self._sessions.csrf_token(visitor) if visitor else "",
            notice=notice,
            path=request.path,
            **values,
        )
        response = web.Response(text=text, content_type="text/html", charset="utf-8", status=status)
        if notice:
            delete_cookie(request, response, "notice")
        return response

    def redirect(self, request: web.Request, location: str, *, notice: str = "") -> web.Response:
        """Return what sends the browser to a page of ours, which shows the notice: the answer to a form.

        The notice is text, or Markup where it has a time.
        """
        response = web.Response(status=303, headers={"Location": location})
        if notice:
            set_cookie(request, response, "notice", self._sessions.notice(escape(notice)), NOTICE_SECONDS)
        return response

    def _age(self, since: datetime | Timestamp) -> str:
        """Return how long ago, in the largest unit that fits."""
        seconds = max(0, int((self._now() - _datetime(since)).total_seconds()))
        for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
            if seconds >= length:
                return counted(seconds // length, unit)
        return "moments"


def session_of(request: web.Request) -> Session:
    """Return who is signed in; for handlers behind the guard."""
    return request[SESSION]


def read_cookie(request: web.Request, name: str) -> str | None:
    """Return what `set_cookie` set."""
    return request.cookies.get(request[CLIENT].cookie(name))


def set_cookie(
    request: web.Request,
    response: web.StreamResponse,
    name: str,
    value: str,
    seconds: int,
    same_site: Literal["Strict", "Lax"] = "Strict",
) -> None:
    """Set a cookie of this dashboard that scripts cannot read and other sites cannot make the browser send.

    Lax ones are sent when a link on another site is followed.
    """
    client = request[CLIENT]
    response.set_cookie(
        client.cookie(name), value, max_age=seconds, httponly=True, samesite=same_site, secure=client.is_https
    )


def delete_cookie(request: web.Request, response: web.StreamResponse, name: str) -> None:
    """Delete a cookie; browsers take that only as it was set."""
    client = request[CLIENT]
    response.del_cookie(client.cookie(name), httponly=True, secure=client.is_https)


def instant(value: datetime | Timestamp) -> Markup:
    """Return a time in UTC, which the script turns into the browser's zone; UTC stays in the title."""
    shown = _datetime(value).astimezone(UTC)
    text = f"{shown:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        shown.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z", text, text
    )


def sentence(text: str) -> str:
    """Return a reason as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def whole_second(instant: Timestamp) -> datetime:
    """Round up, for "by then": what is promised for an instant is not yet true in the second that it is part of."""
    value = _datetime(instant)
    return value + timedelta(microseconds=-value.microsecond % 1_000_000)


def _datetime(value: datetime | Timestamp) -> datetime:
    return value if isinstance(value, datetime) else value.ToDatetime(UTC)


def counted(number: int, noun: str) -> str:
    """Return `1 log`, `2 logs`, `1,200 logs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
