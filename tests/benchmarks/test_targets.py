"""The targets, and the document that says which are met."""

import importlib
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest

from benchmarks.__main__ import QUESTIONS
from benchmarks.cost import FACTOR_MAX, Cost, recorded, verdict
from benchmarks.rig.document import write
from benchmarks.rig.machine import facts
from benchmarks.rig.report import Report, Table, ratio
from benchmarks.rig.targets import TARGETS, Bound, Target, rows

GOOD = {target.name: target.number for target in TARGETS}


def report(measured: dict[str, float | None], **more: dict[str, Any]) -> Report:
    table = Table("logs a request", [("requests/s", ",.0f"), ("ratio", ".2f")], [("ours", [12345.6, 0.834])])
    return Report(
        "How fast?", "With wrk.", [table, Table("none", [("ratio", ".2f")], [("later", [None])])], measured, **more
    )


def reports(measured: Mapping[str, float | None], **more: dict[str, Any]) -> dict[str, Report]:
    """Return one of every question that the run asks, each with all that was measured."""
    return {name: report(dict(measured), **more) for name in QUESTIONS}


def test_every_target_has_a_question_that_the_run_asks() -> None:
    assert {target.question for target in TARGETS} <= set(QUESTIONS)
    for name in QUESTIONS:
        assert importlib.import_module(f"benchmarks.{name}").__doc__, name


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_is_met_up_to_its_number_and_no_further(target: Target) -> None:
    name, number = target.name, target.number
    worse = number * (0.99 if target.bound is Bound.AT_LEAST else 1.01)
    why = {name: "3 requests failed"}
    for value, expected in ((number, "met"), (worse, "not met"), (None, "not met: 3 requests failed")):
        lines = rows(reports(GOOD | {name: value}, void=why))
        (line,) = [line for line, each in zip(lines, TARGETS, strict=True) if each.name == name]
        assert line[-1] == expected


def test_targets_of_questions_that_failed_are_left_out() -> None:
    answered = reports(GOOD)
    del answered["startup"]
    assert len(rows(answered)) == len([target for target in TARGETS if target.question != "startup"])


def test_the_document_has_every_target_in_order_and_every_table() -> None:
    text = write(reports(GOOD, wall_clock={"validate": 0.77}), [("kernel", "Linux 6.1")], date(2026, 1, 31))
    places = [text.index(f"| {target.what} |") for target in TARGETS]
    assert places == sorted(places)
    assert "| `Validate`, CPU | bare grpc.aio echo | 0.85 × | 0.77 × | ≥ 0.85 × | met |" in text
    assert "| ours | 12,346 | 0.83 |" in text
    assert "| later | n/a |" in text
    assert "2026-01-31" in text
    assert "| kernel | Linux 6.1 |" in text


def test_the_document_says_on_what_was_measured_and_how_much_counts_of_instructions_differ() -> None:
    machine = facts()
    text = write(reports(GOOD), machine, date(2026, 1, 31))
    assert {"processor", "the cores of servers and of load", "Python", "aiohttp", "SQLite"} <= {
        name for name, _ in machine
    }
    assert all(f"| {name} | {value} |" in text for name, value in machine)
    assert f"{min(recorded().ratios):.4f} to {max(recorded().ratios):.4f}" in text
    assert "$" not in text


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """One disturbed round changes nothing, though it would change the ratio of the medians."""
    assert ratio([10, 40, 30], [20, 80, 10]) == 0.5


def test_a_request_that_got_dearer_than_recorded_fails_the_check() -> None:
    last = Cost(ours=100_000, bare=200_000)
    assert verdict(Cost(ours=129_000, bare=200_000), last) is None
    assert verdict(Cost(ours=258_000, bare=400_000), last) is None, "another build of CPython is dearer for both"
    assert "1.31" in (verdict(Cost(ours=131_000, bare=200_000), last) or "")
    assert FACTOR_MAX == 1.3
    assert recorded().cost.ratio in [pytest.approx(each, abs=1e-4) for each in recorded().ratios]
