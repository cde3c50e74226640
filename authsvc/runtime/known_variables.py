"""The names of all environment variables of both services, so that a misspelt one stops the start.

Each service knows the other's too: they are often set together, and one is taken for the other. Used by `environment`;
a test holds the list to what the services read.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

_PREFIXES = ("AUTHSVC_", "HTTPBRIDGE_")

KNOWN = frozenset(
    (
        "AUTHSVC_ADDRESS",
        "AUTHSVC_ADMIN_TOKEN",
        "AUTHSVC_ALLOW_INSECURE",
        "AUTHSVC_API_KEY",  # of `authsvc validate`
        "AUTHSVC_BRIDGE_TOKEN",
        "AUTHSVC_CA",
        "AUTHSVC_CLIENT_CERT",
        "AUTHSVC_CLIENT_KEY",
        "AUTHSVC_DATABASE_URL",
        "AUTHSVC_LEASE_MARGIN_SECONDS",
        "AUTHSVC_LEASE_SECONDS",
        "AUTHSVC_LISTEN",
        "AUTHSVC_LOG_FORMAT",
        "AUTHSVC_LOG_LEVEL",
        "AUTHSVC_REFLECTION",
        "AUTHSVC_STATE_DIR",
        "AUTHSVC_TLS_CERT",
        "AUTHSVC_TLS_CLIENT_CA",
        "AUTHSVC_TLS_KEY",
        "AUTHSVC_TRUSTED_PROXIES",
        "AUTHSVC_WORKERS",
        "HTTPBRIDGE_ADMIN_TOKEN",
        "HTTPBRIDGE_ALLOW_INSECURE",
        "HTTPBRIDGE_BODY_BYTES_MAX",
        "HTTPBRIDGE_BYTES_PER_MINUTE",
        "HTTPBRIDGE_CACHE_TTL_SECONDS",
        "HTTPBRIDGE_DASHBOARD_LISTEN",
        "HTTPBRIDGE_DASHBOARD_TOKEN",
        "HTTPBRIDGE_KEEPALIVE_SECONDS",
        "HTTPBRIDGE_KEY_SERVICE",
        "HTTPBRIDGE_KEY_SERVICE_CA",
        "HTTPBRIDGE_KEY_SERVICE_CERT",
        "HTTPBRIDGE_KEY_SERVICE_CERT_KEY",
        "HTTPBRIDGE_KEY_SERVICE_TOKEN",
        "HTTPBRIDGE_LISTEN",
        "HTTPBRIDGE_LOG_FORMAT",
        "HTTPBRIDGE_LOG_LEVEL",
        "HTTPBRIDGE_LOG_STORE_URL",
        "HTTPBRIDGE_PUBLIC_URL",
        "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE",
        "HTTPBRIDGE_STATE_DIR",
        "HTTPBRIDGE_TLS_CERT",
        "HTTPBRIDGE_TLS_KEY",
        "HTTPBRIDGE_TRUSTED_PROXIES",
        "HTTPBRIDGE_WORKERS",
    )
)

# Kubernetes for each Service in the namespace, Docker for each link; theirs may be called authsvc or httpbridge.
_INJECTED = re.compile(r".+_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT|PORT_\d+_(?:TCP|UDP)(?:_.+)?)")


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that is set and that nothing reads, and the known one whose name is nearest."""

    name: str
    nearest: str


def unknown_variable(environ: Mapping[str, str], own: Collection[str]) -> UnknownVariable | None:
    """Return the first variable that looks like ours and is neither known nor one of `own`.

    One that is empty counts as unset. A name that is known but for its case is none, too.
    """
    known = KNOWN.union(own)
    for name, value in environ.items():
        if not value or name in known:
            continue
        if name.upper() in known or (name.startswith(_PREFIXES) and not _INJECTED.fullmatch(name)):
            return UnknownVariable(name, get_close_matches(name.upper(), sorted(known), n=1, cutoff=0)[0])
    return None
