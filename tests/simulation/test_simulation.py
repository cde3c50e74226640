"""The two sides of the lease protocol keep the promise of docs/watch-protocol.md in whatever world a seed makes."""

import pytest

from tests.simulation.simulate import Outcome, simulate

_PARTS = 10
_STEPS_PER_SEED = 10_000


@pytest.mark.timeout(0)  # as long as --simulation-steps says
@pytest.mark.parametrize("part", range(_PARTS))
def test_no_request_is_decided_by_older_state_and_leases_recover(part: int, pytestconfig: pytest.Config) -> None:
    """After every step: what was promised holds, no valid key was refused, and after heal all is well soon."""
    steps = pytestconfig.getoption("--simulation-steps") // _PARTS
    first_seed = pytestconfig.getoption("--simulation-seed")
    decisions = promises = 0
    for seed in range(first_seed + part, first_seed + part + _PARTS * -(-steps // _STEPS_PER_SEED), _PARTS):
        outcome = simulate(seed, _STEPS_PER_SEED)
        assert outcome.violation is None, f"{outcome.report}\nagain: pytest tests/simulation --simulation-seed={seed}"
        decisions += outcome.decisions
        promises += outcome.promises
    assert decisions > steps // 10, "most of the steps say nothing: the traffic is too thin"
    assert promises > steps // 200


def test_equal_seeds_give_equal_schedules() -> None:
    """A failing seed fails again."""

    def play() -> Outcome:
        return simulate(11, 5_000)

    assert play() == play()
