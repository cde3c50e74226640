"""The key service's client: all of `authsvc` that callers in Python may import.

`validator.KeyValidator` is the way in. Only what costs nothing to import is named
here; the modules that bring gRPC with them are imported by their own names.
"""

from authsvc.client.verdicts import Decision, KeyServiceUnavailableError, Verdict

__all__ = ["Decision", "KeyServiceUnavailableError", "Verdict"]
