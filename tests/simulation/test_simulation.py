"""The two sides of the lease protocol keep the promise of docs/watch-protocol.md in whatever world a seed makes."""

import pytest

from tests.simulation.bridge import StopsDuringBackOff
from tests.simulation.simulate import Outcome, simulate
from tests.simulation.world import Protocol

_PARTS = 10
_STEPS = 200_000
_STEPS_LONG = 2_000_000
_STEPS_PER_SEED = 10_000


@pytest.mark.timeout(0)  # as long as --simulation-steps says
@pytest.mark.parametrize("part", range(_PARTS))
def test_no_request_is_decided_by_older_state_and_leases_recover(
    part: int, pytestconfig: pytest.Config, is_long: bool
) -> None:
    """After every step: what was promised holds, no valid key was refused, and after heal all is well soon."""
    steps = (pytestconfig.getoption("--simulation-steps") or (_STEPS_LONG if is_long else _STEPS)) // _PARTS
    first_seed = pytestconfig.getoption("--simulation-seed")
    for seed in range(first_seed + part, first_seed + part + _PARTS * -(-steps // _STEPS_PER_SEED), _PARTS):
        outcome = simulate(seed, _STEPS_PER_SEED)
        assert outcome.violation is None, f"{outcome.report}\nagain: pytest tests/simulation --simulation-seed={seed}"


def test_the_steps_say_something() -> None:
    """Those of ten seeds: a single one may be quiet."""
    outcomes = [simulate(seed, _STEPS_PER_SEED) for seed in range(10)]
    steps = sum(outcome.steps for outcome in outcomes)
    assert sum(outcome.decisions for outcome in outcomes) >= steps // 10, "the traffic is too thin"
    assert sum(outcome.promises for outcome in outcomes) >= steps // 200


def test_nobody_waits_for_who_stopped_while_no_stream_was_open() -> None:
    """Rule 7: the release is said on one more."""
    for seed in range(20):
        outcome = simulate(seed, _STEPS_PER_SEED, Protocol(process=StopsDuringBackOff))
        assert outcome.violation is None, outcome.report


def test_equal_seeds_give_equal_schedules() -> None:
    """A failing seed fails again."""

    def play() -> Outcome:
        return simulate(11, 5_000)

    assert play() == play()
