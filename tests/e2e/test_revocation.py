"""A key that was revoked is refused from the instant that the call returned, on every bridge, under load."""

import asyncio
import itertools

from tests.e2e.administrator import PATIENCE_SECONDS
from tests.e2e.cluster import start_cluster
from tests.e2e.processes import System
from tests.e2e.traffic import Ring, Traffic
from tests.measured import Measured, distribution
from tests.waiting import until

BRIDGES = 3
REVOCATIONS, REVOCATIONS_LONG = 12, 200
PROBED_KEYS = 20

# Run at the start of a Python process that finds it. The keys that the service will generate are then known before,
# so that they can be probed; all other randomness is as it was.
_KNOWN_KEYS = """
import secrets
_keys = iter({keys!r})
_token_hex = secrets.token_hex
secrets.token_hex = lambda nbytes=None: next(_keys) if nbytes == 12 else _token_hex(nbytes)
"""


async def test_no_200_begins_after_revoke_returned(
    replicas_database: str | None, system: System, measured: Measured, is_long: bool
) -> None:
    """And every valid key is accepted all the while. With two replicas, the bridges are attached to the other one."""
    cluster = await start_cluster(system, replicas_database)
    bridges = [bridge.address for bridge in await cluster.bridges(BRIDGES)]
    traffic = Traffic()
    seconds = []
    async with cluster.administrator() as administrator:
        life = await administrator.issue("demo")
        ring = Ring(life.key)
        async with traffic.flowing(bridges, ring):
            for _ in range(REVOCATIONS_LONG if is_long else REVOCATIONS):
                key = life.key
                await until(
                    "every bridge takes the key from its cache",
                    lambda key=key: all(traffic.count(bridge, key, 200) > 1 for bridge in bridges),
                )
                revocation = await administrator.revoke(life, wait_seconds=PATIENCE_SECONDS)
                assert revocation.response.propagation.effective
                assert len(revocation.confirmed) == BRIDGES
                shots = await asyncio.gather(*(traffic.shoot(bridge, key) for bridge in bridges for _ in range(2)))
                assert [shot.status for shot in shots] == [401] * len(shots)
                assert revocation.next is not None
                life = revocation.next
                ring.switch(life.key)
                seconds.append(revocation.seconds)
    cluster.keys.check(traffic.attempts)
    assert traffic.statuses().keys() <= {"200", "401", "None"}, "nothing was a 503"
    measured(distribution(f"Revoke, {cluster}, {BRIDGES} bridges under load", seconds))
    measured(f"answers meanwhile: {traffic.statuses()}")


async def test_a_key_that_was_probed_before_it_existed_works_on_every_bridge_once_issue_returned(
    system: System,
) -> None:
    """Each bridge has it cached as unknown, and goes on being asked for it until Issue returns."""
    keys = [f"{number:024x}" for number in range(0xABCDEF, 0xABCDEF + PROBED_KEYS)]
    directory = system.directory / "known-keys"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_KNOWN_KEYS.format(keys=keys))
    cluster = await start_cluster(system, PYTHONPATH=str(directory))
    bridges = [bridge.address for bridge in await cluster.bridges(BRIDGES)]
    traffic = Traffic()
    async with cluster.administrator() as administrator:
        for number, digits in zip(itertools.count(), keys, strict=False):
            key = f"dt_{digits}"
            async with traffic.flowing(bridges, Ring(key)):
                await until(
                    "every bridge has the key cached as unknown",
                    lambda key=key: all(traffic.count(bridge, key, 401) > 5 for bridge in bridges),
                )
                life = await administrator.issue(f"project-{number}")
                shots = await asyncio.gather(*(traffic.shoot(bridge, key) for bridge in bridges))
            assert life.key == key
            assert [shot.status for shot in shots] == [200] * BRIDGES
    cluster.keys.check(traffic.attempts)
