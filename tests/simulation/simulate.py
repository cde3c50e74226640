"""Run a world from a seed and give the checker's verdict."""

from dataclasses import dataclass

from tests.simulation.checker import Kind, ViolationError
from tests.simulation.faults import Trouble
from tests.simulation.schedule import TRACE_STEPS
from tests.simulation.world import Protocol, World

TRUE_PROTOCOL = Protocol()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `violation` is None when every promise was kept."""

    seed: int
    steps: int
    decisions: int
    promises: int
    violation: Kind | None
    report: str
    """What was violated, the setting, and the last steps that led to it."""


def simulate(seed: int, steps: int, protocol: Protocol = TRUE_PROTOCOL) -> Outcome:
    """Take so many steps, or fewer when a promise is broken. What else goes wrong is raised: it is no verdict."""
    world = World(seed, protocol)
    violation, report = None, ""
    try:
        Trouble(world).begin()
        world.schedule.run(steps)
    except ViolationError as error:
        violation = error.kind
        lines = [
            f"seed {seed}: {error}",
            repr(world.setting),
            f"the last {TRACE_STEPS} steps:",
            *world.schedule.lines(),
        ]
        report = "\n".join(lines)
    checker = world.checker
    return Outcome(seed, world.schedule.steps, checker.decisions, checker.promises, violation, report)
