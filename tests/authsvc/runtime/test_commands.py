"""How a command ends that fails in a way that nobody foresaw: one line, a status of its own, and none of its texts."""

import re
import resource
import subprocess
import sys

import click
import pytest
import structlog
from click.testing import CliRunner

from authsvc.runtime.commands import DEFECT, Commands, connections_that_fit, fail
from authsvc.runtime.environment import ConfigurationError

SECRET = "canary-password"


@pytest.fixture(autouse=True)
def no_logging() -> None:
    """Be as a process is before it has configured its log, whatever tests before this one did."""
    structlog.reset_defaults()


@click.group(cls=Commands)
def main() -> None:
    """Do nothing."""


@main.command()
@click.argument("kind")
def defect(kind: str) -> None:
    if kind == "group":
        raise ExceptionGroup(SECRET, [ValueError(SECRET)])
    raise {"error": RuntimeError, "system": OSError, "lookup": KeyError}[kind](SECRET)


@main.command()
@click.argument("how")
def click_ends(how: str) -> None:
    raise {"usage": click.UsageError("usage"), "abort": click.Abort(), "exit": click.exceptions.Exit(7)}[how]


@main.command()
def name() -> None:
    fail("a\nb\x1b[2J \udcff ä", 3)


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("error", "RuntimeError"), ("system", "OSError"), ("lookup", "KeyError"), ("group", "ValueError")],
)
def test_a_defect_is_one_line_that_says_where_and_repeats_nothing(kind: str, shown: str) -> None:
    done = CliRunner().invoke(main, ["defect", kind], prog_name="authsvc")
    assert (done.exit_code, done.stdout) == (DEFECT, "")
    where = r"authsvc\.runtime\.commands:\d+"
    assert re.fullmatch(rf"authsvc: unexpected error, a defect: {shown} at {where}; .*debug.*\n", done.stderr)
    assert SECRET not in done.stderr


@pytest.mark.parametrize(("how", "status"), [("usage", 2), ("abort", 1), ("exit", 7)])
def test_what_click_ends_it_ends_as_ever(how: str, status: int) -> None:
    done = CliRunner().invoke(main, ["click-ends", how])
    assert done.exit_code == status
    assert "unexpected" not in done.stderr


def test_a_line_stays_one_whatever_it_is_about() -> None:
    done = CliRunner().invoke(main, ["name"], prog_name="authsvc")
    assert (done.exit_code, done.stderr) == (
        3,
        "authsvc: a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J \N{REPLACEMENT CHARACTER} ä\n",
    )


DEBUG = f"""
import click
from authsvc.runtime.commands import Commands
from authsvc.runtime.logging import LogFormat, LogLevel, configure

@click.group(cls=Commands)
def main(): pass

@main.command()
def defect():
    configure(LogLevel.LEVEL, LogFormat.JSON)
    raise RuntimeError("{SECRET}")

main()
"""


@pytest.mark.parametrize(("level", "lines"), [("INFO", 1), ("DEBUG", 2)])
def test_the_traceback_is_logged_at_debug_without_its_texts(level: str, lines: int) -> None:
    script = DEBUG.replace("LEVEL", level)
    done = subprocess.run([sys.executable, "-c", script, "defect"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (DEFECT, "")
    assert done.stderr.count("\n") == lines
    assert ("in defect" in done.stderr) is (level == "DEBUG")
    assert SECRET not in done.stderr


def test_connections_for_which_there_is_no_room_are_refused_and_few_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert connections_that_fit(10_000, 100) == 156
    assert connections_that_fit(10, 100) == 10
    with pytest.raises(ConfigurationError, match="256 open files"):
        connections_that_fit(10_000, 250)
