"""Without any one rule the promise breaks: so the simulation would see it, and each rule is needed."""

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.simulate import simulate

_SEEDS = 200
_STEPS_PER_SEED = 10_000


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.rule}: {mutation.what}")
def test_the_simulation_fails_without_the_rule(mutation: Mutation) -> None:
    """Some seed brings the violation that the rule is there to prevent. Other exceptions are errors of this test."""
    verdicts = []
    for seed in range(_SEEDS):
        outcome = simulate(seed, _STEPS_PER_SEED, mutation.protocol)
        if outcome.violation is mutation.expected:
            return
        verdicts.append(outcome.violation)
    pytest.fail(f"{_SEEDS} seeds, and none is a violation of {mutation.expected}: {set(verdicts)}")


def test_every_rule_has_a_mutation() -> None:
    """The table is complete."""
    assert {mutation.rule for mutation in MUTATIONS} == {str(number) for number in range(1, 13)}
