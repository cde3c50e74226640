"""`authsvc dev-certs`: a small certificate authority and what it signs, to try TLS and mutual TLS with.

Not for production: whoever runs the services there has an authority already.
"""

import os
import shlex
from datetime import datetime, timedelta
from pathlib import Path

import trustme

from authsvc.runtime.environment import ConfigurationError

DAYS = 365
"""How long the certificates are valid. The authority's own outlives them; its key is not kept."""
HOSTS = ("localhost", "127.0.0.1", "::1")
"""What the server's certificate is for: this machine."""
VARIABLES_FILE = "variables.sh"

_ORGANIZATION = "deeptracer-auth dev-certs"
_VARIABLES = {
    "AUTHSVC_TLS_CERT": "server.pem",
    "AUTHSVC_TLS_KEY": "server.key",
    "AUTHSVC_TLS_CLIENT_CA": "ca.pem",
    "AUTHSVC_CA": "ca.pem",
    "AUTHSVC_CLIENT_CERT": "client.pem",
    "AUTHSVC_CLIENT_KEY": "client.key",
    "HTTPBRIDGE_TLS_CERT": "server.pem",
    "HTTPBRIDGE_TLS_KEY": "server.key",
    "HTTPBRIDGE_KEY_SERVICE_CA": "ca.pem",
    "HTTPBRIDGE_KEY_SERVICE_CERT": "client.pem",
    "HTTPBRIDGE_KEY_SERVICE_CERT_KEY": "client.key",
}


def write(directory: Path, now: datetime) -> None:
    """Write `ca.pem`, and certificate and key of a server and of a client, valid `DAYS` from `now` (aware).

    With them goes `variables.sh`, which has the `exports`. All are for this user alone. Raises ConfigurationError,
    before anything is written, when one of the files exists.
    """
    authority = trustme.CA(organization_name=_ORGANIZATION, path_length=0)
    files = {"ca.pem": authority.cert_pem.bytes()}
    for name, identities in (("server", HOSTS), ("client", ("client",))):
        leaf = authority.issue_cert(
            *identities, organization_name=_ORGANIZATION, not_before=now, not_after=now + timedelta(days=DAYS)
        )
        files[f"{name}.pem"] = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        files[f"{name}.key"] = leaf.private_key_pem.bytes()
    files[VARIABLES_FILE] = os.fsencode(exports(directory))
    os.umask(0o077)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in files:
            if os.path.lexists(directory / name):
                raise ConfigurationError(f"{directory / name} exists: remove it, or name another directory")
        for name, content in files.items():
            with (directory / name).open("xb") as file:
                file.write(content)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or directory}: {error.strerror}") from None


def exports(directory: Path) -> str:
    """Return the lines of shell that make both services and the command line use the files, with mutual TLS."""
    path = directory.absolute()
    return "".join(f"export {variable}={shlex.quote(str(path / name))}\n" for variable, name in _VARIABLES.items())
