"""One lookup at a time of a `KeyClient`, over a stream where there is one, and what its tests begin with."""

import asyncio
from contextlib import suppress

from authsvc.client.api_key import ApiKey
from authsvc.client.channel import TokenSource
from authsvc.client.key_client import KeyClient
from authsvc.client.verdicts import KeyServiceUnavailableError, Verdict
from authsvc.runtime.environment import Secret
from tests.authsvc.client.fake_key_service import BRIDGE_TOKEN, FakeKeyService
from tests.authsvc.conftest import Service
from tests.waiting import until

KEY = ApiKey("dt_0123456789abcdef01234567")
OTHER = ApiKey("dt_76543210fedcba9876543210")
TOKEN = TokenSource(Secret(BRIDGE_TOKEN))
ALLOWED, INVALID = Verdict.ALLOWED, Verdict.INVALID_KEY


async def ask(client: KeyClient, key: ApiKey = KEY) -> Verdict:
    """Ask about one key; raise the error if there is no answer."""
    (answer,) = await client.validate([(key, None)])
    if isinstance(answer, KeyServiceUnavailableError):
        raise answer
    return answer.decision.verdict


async def open_stream(client: KeyClient, service: FakeKeyService) -> None:
    """Ask until there is an open stream, which has answered."""
    for _ in range(2):  # a call first, where there was none since the last failure
        if service.ways[-1:] != ["stream"]:
            assert await ask(client) is ALLOWED
    assert service.ways[-1] == "stream"


async def asking(client: KeyClient, service: FakeKeyService, key: ApiKey = KEY) -> asyncio.Task[Verdict]:
    """Begin a lookup, and return once the service has it."""
    count = len(service.calls) + 1
    task = asyncio.create_task(ask(client, key))
    await service.arrived(count)
    return task


async def until_reached(client: KeyClient) -> None:
    """Return once a lookup is answered: the channel's back-off is at most a second."""

    async def is_answered() -> bool:
        with suppress(KeyServiceUnavailableError):
            await ask(client)
            return True
        return False

    await until("the service is reached", is_answered)


def bridge_token(service: Service) -> TokenSource:
    return TokenSource(Secret(service.token("bridge")[0][1].removeprefix("Bearer ")))
