"""What can go wrong in the key service. `interceptors` maps each to its gRPC status.

    KeyServiceError
    ├── InvalidArgumentError    INVALID_ARGUMENT
    ├── NotFoundError           NOT_FOUND
    ├── AlreadyExistsError      ALREADY_EXISTS
    └── StoreUnavailableError   UNAVAILABLE

A bad key is none of these: it is a verdict, in an OK response.
"""


class KeyServiceError(Exception):
    """The base of all of them; its text is shown to the caller."""


class InvalidArgumentError(KeyServiceError):
    """The request breaks a rule that the caller could have known."""


class NotFoundError(KeyServiceError):
    """No such project, or no such key in it."""


class AlreadyExistsError(KeyServiceError):
    """The project has an active key."""


class StoreUnavailableError(KeyServiceError):
    """The database cannot answer now; the same call may succeed later."""
