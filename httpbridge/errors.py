"""What can go wrong while a batch of logs is taken in. `http/request.py` maps each to its response."""

from typing import NamedTuple


class BridgeError(Exception):
    """The base of all of them; the text of BodyRefusedError alone is shown to the caller."""


class Issue(NamedTuple):
    """One problem of a body."""

    path: str
    """Where it is, such as `logs[3].level`; empty for the body as a whole."""
    message: str


class BodyRefusedError(BridgeError):
    """A body that is not the JSON that the contract describes."""

    def __init__(self, message: str, path: str = "", *others: Issue) -> None:
        """Take the first problem, and the others in their order; no path is the body as a whole."""
        super().__init__(message)
        self.path = path
        self.issues = (Issue(path, message), *others)


class BodyTooLargeError(BridgeError):
    """A body, or what it inflates to, is over the limit."""


class RateLimitedError(BridgeError):
    """The key has sent as many bytes in this minute as it may."""


class UnsupportedEncodingError(BridgeError):
    """A Content-Encoding that is not decoded here."""


class StoreUnavailableError(BridgeError):
    """The log store cannot take the batch now."""


class IdempotencyConflictError(BridgeError):
    """The key of the batch was used with another body; nothing of it is stored."""


class OverloadedError(BridgeError):
    """The bodies of other requests take all the room there is, or all there is for the key."""


class BodyTimeoutError(BridgeError):
    """A body that did not arrive in time; the rest of it is not waited for."""


class MalformedRequestError(BridgeError):
    """What the HTTP parser refuses. It says nothing of what came."""


class ClientGoneError(BridgeError):
    """The client closed the connection while its body was read."""
