"""The addresses that proxies say they were called by, for the request log. Pure. Used by `server`."""

import re

from aiohttp import hdrs
from multidict import MultiMapping

_FOR = re.compile(r'(?:^|[;,])\s*for\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)
"""RFC 7239, 4."""

_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")
"""An IPv6 address in brackets, or an IPv4 one with a port: some balancers add it."""


def forwarded_for(headers: MultiMapping[str]) -> list[str]:
    """Return what X-Forwarded-For lists, or where there is none, what Forwarded does; the nearest proxy's last.

    Whether it is true is another question: `client_address` believes trusted proxies alone.
    """
    values = headers.getall(hdrs.X_FORWARDED_FOR, ())
    if values:
        found = [part.strip() for part in ",".join(values).split(",")]
    else:
        found = [quoted or plain for quoted, plain in _FOR.findall(",".join(headers.getall(hdrs.FORWARDED, ())))]
    return [_without_port(text) for text in found]


def _without_port(text: str) -> str:
    match = _WITH_PORT.fullmatch(text)
    return (match[1] or match[2]) if match else text
