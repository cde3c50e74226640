"""What a key check says, and the one way it can fail."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What the key service says of a key and an origin."""

    ALLOWED = "allowed"
    INVALID_KEY = "invalid_key"
    """The key is malformed, unknown or revoked; which of them is not said."""
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    """The key is active, and its project does not admit the origin."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and whose key it is about; both ids are empty for an invalid key. True if the verdict is ALLOWED."""

    verdict: Verdict
    project_id: str
    key_id: str

    def __bool__(self) -> bool:
        return self.verdict is Verdict.ALLOWED


INVALID_KEY = Decision(Verdict.INVALID_KEY, project_id="", key_id="")


@dataclass(frozen=True, slots=True)
class Response:
    """What the key service said, and how long and how widely it holds."""

    decision: Decision
    any_origin: bool
    """The decision holds for the key whatever the origin."""
    cache_ttl_seconds: float
    """Counted from when the call was sent; 0 or less: not to be reused."""
    revision: int
    """The store's revision that it was read at."""
    epoch: str = ""
    """Of the revision; empty where the key service did not say."""


class KeyRefusedError(Exception):
    """The key may not be used, or not from this origin: `decision` says which."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(_REFUSALS[decision.verdict])
        self.decision = decision


_REFUSALS = {
    Verdict.INVALID_KEY: "missing or invalid API key",
    Verdict.ORIGIN_NOT_ALLOWED: "the key's project does not admit the origin",
}


class KeyServiceUnavailableError(Exception):
    """No verdict, which says nothing about the key. The message is one line for the operator, without secrets."""


ORIGIN_CHARACTERS_MAX = 300
"""A longer origin is one that no entry admits: a scheme, a host of 253 characters and a port are fewer."""
