"""What tests measured, shown at the end of the run: pytest swallows what a test that passes prints."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pytest

_PROPERTY = "measured"

Measured: TypeAlias = Callable[[str], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Take a line for the end of the run."""
    return lambda line: request.node.user_properties.append((_PROPERTY, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write all lines, in the order in which the tests ended."""
    lines = [
        line
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, line in report.user_properties
        if name == _PROPERTY
    ]
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.write_line(line)


def distribution(what: str, seconds: Sequence[float]) -> str:
    """Return quantiles of durations, in milliseconds."""
    ordered = sorted(seconds)
    figures = {f"p{percent}": ordered[(len(ordered) - 1) * percent // 100] for percent in (50, 90, 99)}
    figures["max"] = ordered[-1]
    words = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in figures.items())
    return f"{what}: {len(ordered)} times, {words}"
