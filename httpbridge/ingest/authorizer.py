"""Who may send: the Authorization and Origin headers of a request to a verdict. Called by `ingest`.

The verdict itself comes from the key service's client, of which `KeyValidator` is all that is seen here.
"""

from typing import Protocol

from aiohttp import hdrs
from multidict import MultiMapping

from authsvc.client import Decision, Verdict
from authsvc.client.api_key import ApiKey
from authsvc.client.verdicts import INVALID_KEY

_OPAQUE_ORIGIN = "null"


class KeyValidator(Protocol):
    """Asks the key service, and remembers what it said."""

    def cached(self, api_key: ApiKey, origin: str | None) -> Decision | None:
        """Return the verdict if it is known now, without waiting."""

    async def validate(self, api_key: ApiKey, origin: str | None) -> Decision:
        """Return the verdict, asking for it if need be; raise KeyServiceUnavailableError when there is none."""


class OriginCounter(Protocol):
    """Counts where requests come from."""

    def count(self, project_id: str, origin: str, is_allowed: bool) -> None:
        """Count one request that has a valid key; quickly."""


class Authorizer:
    """Decides on a request from its headers alone, and has the origins of those with a valid key counted."""

    def __init__(self, validator: KeyValidator, origins: OriginCounter) -> None:
        self._validator = validator
        self._origins = origins

    async def authorize(self, headers: MultiMapping[str]) -> Decision:
        """Return the verdict on the key and the origin that the headers carry.

        What is not `Bearer` and one well-formed key is an invalid key, and the key service is not asked. Raises
        KeyServiceUnavailableError when a verdict is needed and there is none.
        """
        api_key = _api_key(headers)
        if api_key is None:
            return INVALID_KEY
        origin = _origin(headers)
        decision = self._validator.cached(api_key, origin)
        if decision is None:  # one that refuses is false
            decision = await self._validator.validate(api_key, origin)
        if origin is not None and decision.verdict is not Verdict.INVALID_KEY:
            self._origins.count(decision.project_id, origin, decision.verdict is Verdict.ALLOWED)
        return decision


def _api_key(headers: MultiMapping[str]) -> ApiKey | None:
    values = headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) != 1:  # of several, another reader of the same request might take another one
        return None
    scheme, _, credentials = values[0].partition(" ")
    if scheme.lower() != "bearer":  # RFC 9110, 11.1: the scheme's case does not matter
        return None
    return ApiKey.parse(credentials.lstrip(" "))


def _origin(headers: MultiMapping[str]) -> str | None:
    """Return the request's origin, or None when it has none; several count as `null`, which no entry admits.

    What else no entry can admit, such as bytes that are not UTF-8, the validator puts under one verdict.
    """
    values = headers.getall(hdrs.ORIGIN, ())
    if not values:
        return None
    return values[0] if len(values) == 1 else _OPAQUE_ORIGIN
