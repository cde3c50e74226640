"""The key service's client: all of `authsvc` that callers in Python may import.

KeyValidator is the way in. It brings gRPC with it, and so is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from authsvc.client.verdicts import Decision, KeyRefusedError, KeyServiceUnavailableError, Verdict

if TYPE_CHECKING:
    from authsvc.client.validator import KeyValidator
else:

    def __getattr__(name: str) -> object:
        if name != "KeyValidator":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from authsvc.client.validator import KeyValidator  # noqa: PLC0415 - gRPC

        return KeyValidator


__all__ = ["Decision", "KeyRefusedError", "KeyServiceUnavailableError", "KeyValidator", "Verdict"]
