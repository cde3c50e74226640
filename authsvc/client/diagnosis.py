"""Why no connection to the key service came about, in one line for the operator: what gRPC says of it, in our words.

What it says in other words is passed on as it is.
"""

import re

from authsvc.client.channel import ClientTls
from authsvc.runtime.environment import Address

_WORDS = {
    "Connection refused": "{} refuses connections: is the key service running?",
    "timed out": "{} did not answer in time",
    "Failed parsing HTTP/2": "{} does not speak gRPC: is it the bridge's address, or another service's?",
    "WRONG_VERSION_NUMBER": "{} does not speak TLS",
    "HTTP_REQUEST": "{} does not speak TLS",
    "Hostname Verification Check failed": "the certificate of {} is not accepted: it is for another host",
}
_CLOSED = ("Socket closed", "reset by peer", "ALERT")
"""gRPC's servers close without a TLS alert when they do not accept a client's certificate; others send one."""


def connection_fault(details: str, address: Address, tls: ClientTls | None) -> str | None:
    """Return what is wrong; None for the details of a call that may have been sent."""
    if details.startswith("errors resolving "):
        return f"{address}: the host is not known"
    failed, _, reason = details.partition("; last error: ")
    if not failed.startswith("failed to connect to "):
        return None
    for theirs, ours in _WORDS.items():
        if theirs in reason:
            return ours.format(address)
    if tls is not None and (match := re.search("CERTIFICATE_VERIFY_FAILED: ([^:]+)", reason)):
        ca = f"{tls.variables[0]}={tls.ca}" if tls.ca else f"{tls.variables[0]} is not set"
        return f"the certificate of {address} is not accepted: {match[1]} ({ca})"
    if any(closed in reason for closed in _CLOSED):
        return _closed_fault(address, tls)
    return f"{address}: {reason or details}"


def _closed_fault(address: Address, tls: ClientTls | None) -> str:
    if tls is None:
        return f"{address} ends connections without TLS: it may expect TLS, and no CA is configured"
    _, certificate, key = tls.variables
    if tls.certificate is None:
        return f"{address} demands a client certificate (it closes the connection): set {certificate} and {key}"
    return (
        f"{address} does not accept our client certificate ({certificate}={tls.certificate}): has it expired, "
        "and is it signed by the CA that the key service expects?"
    )
