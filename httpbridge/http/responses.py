"""The responses of the public API, their bytes prepared ahead. Pure.

What is the same for every request (status line, fixed headers, body) is joined once; a connection adds what belongs to
one request. Bodies and headers are the public contract's, to the byte.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs
from multidict import MultiMapping

from httpbridge.errors import BodyRefusedError

_EXPOSED = "Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
_CORS = f"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: {_EXPOSED}\r\n".encode()


@dataclass(frozen=True, slots=True)
class Response:
    """A response but for what depends on the request: Date, Connection, rate limit headers."""

    status: int
    head: bytes
    """Status line and headers, each line ended, without the empty line that ends them all."""
    head_cors: bytes
    """The same for a request that has an Origin."""
    body: bytes


_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110; Python's table has it from 3.13 on


def prepare(status: int, headers: Mapping[str, str], body: bytes, cors: bytes = _CORS) -> Response:
    """Prepare a response with these headers; `cors` is added where a request has an Origin."""
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, HTTPStatus(status).phrase)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
    return Response(status, head, head + cors, body)


def json_response(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Prepare a response with a JSON body and, besides its type and length, these headers."""
    body = json.dumps(content, ensure_ascii=False).encode()
    fixed = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return prepare(status, fixed | dict(headers or {}), body)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(status, {"error": message}, headers)


BAD_REQUEST = _error(400, "Bad request")
INVALID_KEY = _error(401, "Missing or invalid API key", {"WWW-Authenticate": "Bearer"})
ORIGIN_NOT_ALLOWED = _error(403, "Origin not allowed")
IDEMPOTENCY_CONFLICT = _error(422, "Idempotency-Key was used with another body")
NOT_FOUND = _error(404, "Not found")
BODY_TOO_LARGE = _error(413, "Request body too large")
UNSUPPORTED_ENCODING = _error(415, "Unsupported content encoding")
# Not a 500: it may go well the next time, and OpenTelemetry's exporters send again after 429, 502, 503 and 504 alone.
INTERNAL_ERROR = _error(503, "Internal server error", {"Retry-After": "1"})
# Not a 408: clients drop what gets a 4xx, and retry a 5xx.
REQUEST_TIMEOUT = _error(503, "Request timeout", {"Retry-After": "1"})
OVERLOADED = _error(503, "Overloaded", {"Retry-After": "1"})
KEY_SERVICE_UNAVAILABLE = _error(503, "Key service unavailable", {"Retry-After": "1"})
STORE_UNAVAILABLE = _error(503, "Log store unavailable", {"Retry-After": "1"})

_HEADER_NAMES_MAX = 64
_HEADER_NAMES_CHARACTERS_MAX = 2048
"""Of the headers that a preflight asks for; those beyond are not allowed."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINE_CLOSE = b"Connection: close\r\n\r\n"
"""The last header line of a response after which the connection is closed, and the empty line."""


def ready(status: str, reason: str = "") -> Response:
    """Prepare the response of GET /ready; the status is "ok", "degraded" or "unavailable". The reason is public."""
    content = {"status": status, "reason": reason} if reason else {"status": status}
    return json_response(503 if status == "unavailable" else 200, content)


DRAINING = ready("unavailable", "draining")


def preflight(allowed: str) -> Response:
    """Prepare the response to a preflight of a path with these methods, but for `preflight_headers`."""
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": allowed,
        "Access-Control-Max-Age": "86400",
        "Vary": "Access-Control-Request-Headers, Access-Control-Request-Private-Network",
    }
    return prepare(204, headers, b"", cors=b"")


def preflight_headers(headers: MultiMapping[str]) -> bytes:
    """Return the header lines that allow what a preflight asks for.

    Pages send more headers than ours: a tracing SDK, say, adds its own to all requests of a page.
    """
    asked = ",".join(headers.getall(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, ()))[:_HEADER_NAMES_CHARACTERS_MAX]
    names = [name for name in map(str.strip, asked.split(",")) if _HEADER_NAME.fullmatch(name)]
    allowed = ", ".join(names[:_HEADER_NAMES_MAX])
    lines = f"Access-Control-Allow-Headers: {allowed}\r\n" if allowed else ""
    # A page of the Internet that sends to a bridge in its user's own network.
    if headers.get("Access-Control-Request-Private-Network", "").lower() == "true":
        lines += "Access-Control-Allow-Private-Network: true\r\n"
    return lines.encode("ascii")


def method_not_allowed(allowed: str) -> Response:
    """Prepare the response to another method than the one that is allowed."""
    return _error(405, "Method not allowed", {"Allow": allowed})


def stored(count: int) -> Response:
    """Prepare the response to a batch of that many entries."""
    return json_response(200, {"ok": True, "count": count})


def refused_body(error: BodyRefusedError) -> Response:
    """Prepare the response to a body that breaks a rule."""
    sentence = " ".join(error.issues[0]).lstrip()
    return json_response(400, {"error": sentence, "issues": [issue._asdict() for issue in error.issues]})


def rate_limited(retry_after_seconds: int) -> Response:
    """Prepare the response to a request over the limit."""
    return _error(429, "Rate limit exceeded", {"Retry-After": str(retry_after_seconds)})


def last_response(response: Response, date_line: bytes) -> bytes:
    """Return a response to what was not read, after which the connection is closed: it suits pages, too."""
    return b"".join((response.head_cors, date_line, LINE_CLOSE, response.body))
