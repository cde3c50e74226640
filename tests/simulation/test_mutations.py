"""Without any one rule the promise breaks: so the simulation would see it, and each rule is needed."""

import pytest

from tests.simulation.checker import ViolationError
from tests.simulation.faults import Trouble
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.simulate import simulate
from tests.simulation.world import World

_SEEDS = 400
_STEPS_PER_SEED = 10_000


@pytest.mark.timeout(600)  # all seeds, on a busy machine
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.rule}: {mutation.what}")
def test_the_simulation_fails_without_the_rule(mutation: Mutation, is_long: bool) -> None:
    """Some seed brings the violation that the rule is there to prevent. Other exceptions are errors of this test."""
    verdicts = []
    for seed in range(0 if is_long else mutation.first_seed, _SEEDS):
        outcome = simulate(seed, _STEPS_PER_SEED, mutation.protocol)
        if outcome.violation is mutation.expected:
            return
        verdicts.append(outcome.violation)
    pytest.fail(f"{len(verdicts)} seeds, and none is a violation of {mutation.expected}: {set(verdicts)}")


def test_a_violation_is_reported_with_its_seed_its_setting_and_the_steps_that_led_to_it() -> None:
    """Enough to see what happened, and to make it happen again."""
    mutation = MUTATIONS[0]
    seeds = range(mutation.first_seed, _SEEDS)
    outcomes = (simulate(seed, _STEPS_PER_SEED, mutation.protocol) for seed in seeds)
    failed = next(outcome for outcome in outcomes if outcome.violation is mutation.expected)
    again = World(failed.seed, mutation.protocol)
    Trouble(again).begin()
    with pytest.raises(ViolationError) as caught:
        again.schedule.run(failed.steps)
    first, setting, title, *steps = failed.report.splitlines()
    assert first == f"seed {failed.seed}: {caught.value}"
    assert setting == repr(again.setting)
    assert title == "the last 400 steps:"
    assert steps == again.schedule.lines()
    assert steps[-1].startswith(f"{again.schedule.now:12.6f}  ")


def test_every_rule_has_a_mutation() -> None:
    """The table is complete."""
    assert {mutation.rule for mutation in MUTATIONS} == {str(number) for number in range(1, 13)}
