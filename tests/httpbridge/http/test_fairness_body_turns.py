"""BodyTurn: who may hold the event loop for a dear step, and who is served between two of them."""

import asyncio
import itertools
from collections.abc import Generator

import pytest

from httpbridge.http.fairness import TURNS_BETWEEN, BodyTurn, Turns
from tests.httpbridge.conftest import NOBODY


def body_turns() -> Turns:
    """Return what a bridge has its large bodies take turns with."""
    return Turns(asyncio.get_running_loop(), NOBODY, turns=1, caller_turns=1)


class Steps:
    """Notes who took each step, and in which turn of the event loop."""

    def __init__(self) -> None:
        self.turns = body_turns()
        self.taken: list[tuple[str, int]] = []
        self.loop_turn = 0
        self._counter = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            self.loop_turn += 1
            await asyncio.sleep(0)

    def of(self, name: str, count: int) -> Generator[None, None, str]:
        for _ in range(count):
            self.taken.append((name, self.loop_turn))
            yield
        self.taken.append((name, self.loop_turn))
        return name

    async def run(self, *asking: tuple[str, str, int]) -> list[str]:
        """Run steps for each: project, name, how many besides the last one."""
        results = await asyncio.gather(
            *(BodyTurn(self.turns, project_id).run(self.of(name, count)) for project_id, name, count in asking)
        )
        self._counter.cancel()
        return results

    @property
    def names(self) -> str:
        return "".join(name for name, _ in self.taken)


async def test_the_last_step_returns_the_result() -> None:
    assert await Steps().run(("p", "a", 0), ("p", "b", 3)) == ["a", "b"]


async def test_everybody_else_has_turns_between_two_steps() -> None:
    """Whoever takes them: one request, or several."""
    steps = Steps()
    await steps.run(*((f"p{number}", str(number), 3) for number in range(4)))
    turns = [turn for _, turn in steps.taken]
    assert len(turns) == 16
    assert all(later - earlier >= TURNS_BETWEEN for earlier, later in itertools.pairwise(turns))


async def test_projects_take_turns_whatever_the_number_of_their_requests() -> None:
    steps = Steps()
    await steps.run(*[("greedy", "g", 2)] * 8, ("other", "o", 2), ("third", "t", 2))
    assert steps.names[:10] == "gotgotgotg"
    assert steps.names[10:] == "g" * 20


async def test_a_request_that_has_begun_goes_on_before_others_of_its_project_begin() -> None:
    steps = Steps()
    await steps.run(("p", "a", 2), ("p", "b", 2), ("p", "c", 1))
    assert steps.names == "aaabbbcc"


async def test_who_goes_away_while_waiting_keeps_nobody_from_their_turn() -> None:
    steps = Steps()
    gone = [asyncio.create_task(BodyTurn(steps.turns, project_id).run(steps.of("x", 1))) for project_id in "ppq"]
    await asyncio.sleep(0)  # the first has its turn, the others wait
    stays = asyncio.create_task(BodyTurn(steps.turns, "q").run(steps.of("s", 1)))
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    assert await stays == "s"
    await BodyTurn(steps.turns, "p").take()
    assert steps.names == "xss"


async def test_a_turn_that_is_free_is_taken_at_once() -> None:
    """Without waiting for the event loop: nothing comes between asking and the step."""
    coroutine = BodyTurn(body_turns(), "p").take()
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def test_a_step_that_fails_ends_its_request_alone() -> None:
    failure = ValueError()

    def failing() -> Generator[None, None, str]:
        yield
        raise failure

    steps = Steps()
    outcomes = await asyncio.gather(
        BodyTurn(steps.turns, "p").run(failing()),
        BodyTurn(steps.turns, "p").run(steps.of("a", 2)),
        return_exceptions=True,
    )
    assert list(outcomes) == [failure, "a"]
