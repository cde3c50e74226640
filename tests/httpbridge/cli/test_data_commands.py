"""`httpbridge erase` and `httpbridge retention` on a real store that a bridge has open."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from authsvc.runtime.commands import Commands
from authsvc.runtime.database_url import sqlite_url
from httpbridge.cli.data_commands import DATA_COMMANDS
from httpbridge.cli.data_view import receipt_text
from httpbridge.log_store.erasure import Receipt
from tests.contract.test_log_sink import batch, sink_on
from tests.e2e.stored_logs import messages

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command with a store of two projects."""

    async def store() -> None:
        async with sink_on(sqlite_url(tmp_path / "logs.db")) as sink:
            await sink.write(batch("a", "b", project_id="shop"))
            await sink.write(batch("test", project_id="shop", environment="test"))
            await sink.write(batch("other", project_id="blog"))

    asyncio.run(store())
    commands = Commands("httpbridge", commands={command.name or "": command for command in DATA_COMMANDS})

    def run(*arguments: str, stdin: str | None = None, **variables: str) -> Result:
        env = {"HTTPBRIDGE_STATE_DIR": str(tmp_path)} | variables
        with patch("authsvc.runtime.commands.getpass.getuser", lambda: "ann"):
            return CliRunner().invoke(commands, arguments, input=stdin, env=env, prog_name="httpbridge")

    return run


def erased(tmp_path: Path) -> list[Any]:
    with closing(sqlite3.connect(tmp_path / "logs.db")) as connection:
        return connection.execute("SELECT project_id, by, selection, entries FROM erasures").fetchall()


def test_a_dry_run_says_how_many_would_go(run: Run, tmp_path: Path) -> None:
    done = run("erase", "shop", "--environment", "test", "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "1 entry of project shop would go: environment test\n")
    assert messages(tmp_path, "shop") == ["a", "b", "test"]
    assert erased(tmp_path) == []


def test_with_yes_it_erases_and_prints_a_receipt(run: Run, tmp_path: Path) -> None:
    done = run("erase", "shop", "--service", "api", "--environment", "production", "--yes")
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("erased 2 entries of project shop: service api; environment production; by cli:ann at 20")
    assert second == "nothing of it is left in the database's file and its WAL"
    assert "2 entries of project shop would go" in done.stderr
    assert messages(tmp_path) == ["test", "other"]
    assert erased(tmp_path) == [("shop", "cli:ann", "service api; environment production", 2)]


@pytest.mark.parametrize(
    ("is_sqlite", "is_scrubbed", "words"),
    [
        (True, True, "nothing of it is left"),
        (True, False, "the WAL still has some of it, as somebody reads the store: erase again when nobody does"),
        (False, True, "PostgreSQL overwrites it in its files and its WAL in its own time"),
    ],
)
def test_a_receipt_says_what_is_left(is_sqlite: bool, is_scrubbed: bool, words: str) -> None:
    at = datetime(2026, 11, 29, 20, 15, tzinfo=UTC)
    receipt = Receipt("shop", "with the text '\x1b[31m'", 1234, "cli:ann\x07", at, is_scrubbed)
    first, second = receipt_text(receipt, is_sqlite=is_sqlite).splitlines()
    assert first == (
        "erased 1,234 entries of project shop: with the text '\N{REPLACEMENT CHARACTER}[31m';"
        " by cli:ann\N{REPLACEMENT CHARACTER} at 2026-11-29T20:15:00.000000Z"
    )
    assert words in second


def test_without_a_terminal_it_does_not_ask(run: Run, tmp_path: Path) -> None:
    done = run("erase", "shop", stdin="shop\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no terminal to ask on: say --yes" in done.stderr
    assert len(messages(tmp_path)) == 4


@pytest.mark.parametrize(("typed", "status", "left"), [("shop\n", 0, 1), ("shopp\n", 1, 4), ("\n", 1, 4), ("", 1, 4)])
def test_on_a_terminal_the_project_is_typed(run: Run, tmp_path: Path, typed: str, status: int, left: int) -> None:
    with patch("httpbridge.cli.data_commands.is_terminal", lambda: True):
        done = run("erase", "shop", stdin=typed)
    assert done.exit_code == status
    assert "Type the project's name" in done.stderr
    assert len(messages(tmp_path)) == left
    assert len(erased(tmp_path)) == (status == 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", ""], "an empty text selects everything"),
        (["--since", "soon"], "neither a time"),
        (["--since", "1h", "--until", "2h"], "not after --since"),
        (["--level", "loud"], "loud"),
    ],
)
def test_a_selection_that_makes_no_sense_erases_nothing(
    run: Run, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run("erase", "shop", "--yes", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(messages(tmp_path)) == 4


def test_nothing_is_made_where_there_is_no_store(run: Run, tmp_path: Path) -> None:
    for arguments in (["erase", "shop", "--yes"], ["retention"], ["retention", "shop", "--days", "1"]):
        done = run(*arguments, HTTPBRIDGE_STATE_DIR=str(tmp_path / "none"))
        assert (done.exit_code, done.stdout) == (2, "")
        assert "there is no log store at" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_locked_store_is_unavailable(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpbridge.log_store.second_writer._BUSY_SECONDS_MAX", 0.1)
    with closing(sqlite3.connect(tmp_path / "logs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for arguments in (["erase", "shop", "--yes"], ["retention", "shop", "--days", "1"]):
            done = run(*arguments)
            assert done.exit_code == 3
            assert "the log store is unavailable: " in done.stderr


def test_retention_is_shown_and_set(run: Run, tmp_path: Path) -> None:
    assert run("retention").stdout.splitlines() == [
        "all projects: kept for ever (HTTPBRIDGE_RETENTION_DAYS, as it is set here)",
        "the whole store: no limit (HTTPBRIDGE_STORE_BYTES_MAX, as it is set here)",
    ]
    assert run("retention", "shop").stdout == "shop: kept for ever, as all; no limit of bytes\n"
    set_days = run("retention", "shop", "--days", "30")
    assert (set_days.exit_code, set_days.stdout) == (0, "shop: kept for 30 days; no limit of bytes\n")
    assert run("retention", "shop", "--bytes", "5000").stdout == "shop: kept for 30 days; at most 5,000 bytes\n"
    assert run("retention", "blog", "--days", "0").stdout == "blog: kept for ever; no limit of bytes\n"
    with closing(sqlite3.connect(tmp_path / "logs.db")) as connection:
        dropped = "UPDATE project_data SET dropped_entries = 1200, dropped_bytes = 90000, dropped_at = 1800000000"
        connection.execute(f"{dropped} WHERE project_id = 'shop'")
        connection.commit()
    at = "2027-01-15T08:00:00.000000Z"
    shown = run("retention", HTTPBRIDGE_RETENTION_DAYS="1", HTTPBRIDGE_STORE_BYTES_MAX="20000000")
    assert shown.stdout.splitlines() == [
        "all projects: kept for 1 day (HTTPBRIDGE_RETENTION_DAYS, as it is set here)",
        "the whole store: 20.0 MB (HTTPBRIDGE_STORE_BYTES_MAX, as it is set here)",
        "blog: kept for ever; no limit of bytes",
        f"shop: kept for 30 days; at most 5,000 bytes; dropped so far 1,200 entries, 90.0 kB, last at {at}",
    ]
    both = run("retention", "shop", "--days", "default", "--bytes", "none", HTTPBRIDGE_RETENTION_DAYS="7")
    assert both.stdout.startswith("shop: kept for 7 days, as all; no limit of bytes; dropped")


@pytest.mark.parametrize(
    "arguments", [["shop", "--days", "-1"], ["shop", "--days", "36501"], ["shop", "--bytes", "0"], ["--days", "1"]]
)
def test_limits_that_make_no_sense_are_wrong_usage(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    assert run("retention", *arguments).exit_code == 2
    with closing(sqlite3.connect(tmp_path / "logs.db")) as connection:
        assert connection.execute("SELECT * FROM project_data").fetchall() == []
