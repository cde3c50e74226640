"""What can go wrong in the key service; `faults` has the gRPC status of each. A bad key is none: it is a verdict."""


class KeyServiceError(Exception):
    """The base of all of them; its text is shown to the caller."""


class InvalidArgumentError(KeyServiceError):
    """The request breaks a rule that the caller could have known."""


class NotFoundError(KeyServiceError):
    """No such project, or no such key in it."""


class AlreadyExistsError(KeyServiceError):
    """The project has an active key."""


class HolderReleasedError(KeyServiceError):
    """A holder asks for a lease after it released its own."""


class RevisionsLostError(KeyServiceError):
    """A holder has applied changes that the database does not have: commits were lost, without a new epoch."""


class SlowHolderError(KeyServiceError):
    """A stream whose holder does not read what it is sent."""


class TooManyHoldersError(KeyServiceError):
    """There are as many holders of leases, or an address has as many of them, as there may be."""


class StreamEndedError(KeyServiceError):
    """The service ends a stream; the holder opens another, here or at another replica."""


class StoreUnavailableError(KeyServiceError):
    """The database cannot answer now; the same call may succeed later. `reason` is for the operator alone."""

    text = "the database cannot answer now"

    def __init__(self, reason: str) -> None:
        super().__init__(self.text)
        self.reason = reason


class StoreLostError(StoreUnavailableError):
    """The file of the database was moved, removed, replaced or overwritten: what is in it counts for nothing now."""

    text = "the file of the key service's database was moved, removed or replaced: its log says more"


class StoreOverwrittenError(StoreLostError):
    """The file is in its place, with other content in it, which its WAL does not fit."""


class StoreRefusedError(StoreUnavailableError):
    """The database rejects the service, and waiting does not help."""
