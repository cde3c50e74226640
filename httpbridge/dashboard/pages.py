"""Rendering: templates, and what every page gets. A page of a project extends `project.html`, another one `base.html`.

Templates are escaped throughout.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from httpbridge.dashboard.clients import CLIENT
from httpbridge.dashboard.log_page.entries import fields_of, headline
from httpbridge.dashboard.sessions import NOTICE_SECONDS, Session, Sessions
from httpbridge.text import byte_text, rfc3339

DIRECTORY = Path(__file__).parent
KEY_VARIABLE = "$DEEPTRACER_KEY"
"""Stands for a key that is not known; the shell puts it in, named as in `.env.local`."""

CSRF_SUBJECT = web.RequestKey("csrf_subject", str)
"""Whom the forms of this request's page are for: the id of the session, or of the pre-session on the way in."""
SESSION = web.RequestKey("session", Session)
"""Who is signed in; set behind the middlewares."""


class Pages:
    """Makes responses of templates. `clients_url` is where clients reach the bridge; `now` gives aware instants."""

    def __init__(self, sessions: Sessions, clients_url: str, now: Callable[[], datetime]) -> None:
        self._sessions = sessions
        self._now = now
        self._environment = Environment(
            loader=FileSystemLoader(DIRECTORY / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._environment.filters |= {
            "instant": instant,
            "whole_second": whole_second,
            "age": self._age,
            "counted": counted,
            "counted_entries": counted_entries,
            "bytes": byte_text,
            "sentence": sentence,
            "rfc3339": rfc3339,
            "headline": headline,
            "fields_of": fields_of,
        }
        self._environment.globals["curl_line"] = partial(curl_line, clients_url)

    def render(self, request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
        """Return a page. Templates also see `session`, `csrf_token` and `notice`."""
        session = request.get(SESSION)
        subject = request.get(CSRF_SUBJECT)
        # Escaped when it was signed.
        notice = Markup(self._sessions.read_notice(read_cookie(request, "notice")) if session else "")  # noqa: S704
        text = self._environment.get_template(template).render(
            session=session,
            csrf_token=self._sessions.csrf_token(subject) if subject else "",
            notice=notice,
            path=request.path,
            **values,
        )
        response = web.Response(text=text, content_type="text/html", charset="utf-8", status=status)
        if notice:
            delete_cookie(request, response, "notice")
        return response

    def macro(self, template: str, name: str) -> Callable[..., Markup]:
        """Return a macro of a template, for part of a page."""
        macro: Callable[..., Markup] = getattr(self._environment.get_template(template).module, name)
        return macro

    def redirect(self, request: web.Request, location: str, *, notice: str = "") -> web.Response:
        """Return what sends the browser to a page of ours, which shows the notice: the response to a form.

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


def counted_entries(number: int) -> str:
    """Return `1 entry`, `2 entries`."""
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def curl_line(clients_url: str, key: str = KEY_VARIABLE, *, origin: str = "") -> str:
    """Return the line for a shell that sends a log to the bridge there; `origin` is for one as a page sends it."""
    return (
        f"curl -sS -w '\\n' {clients_url}/ingest/logs "
        f'-H "Authorization: Bearer {key}" '
        + (f"-H 'Origin: {origin}' " if origin else "")
        + "-H 'Content-Type: application/json' "
        """-d '{"service": "hello", "logs": [{"level": "info", "message": "hello, world"}]}'"""
    )
