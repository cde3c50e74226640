"""The commands `export`, `import` and `store`, as they are run."""

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from authsvc.runtime.commands import OutputError
from httpbridge.cli.output_file import written
from httpbridge.log_store.zstandard import zstd
from tests.e2e import forks
from tests.e2e.processes import clean_environment
from tests.waiting import DEADLINE_SECONDS

HTTPBRIDGE = Path(sys.executable).parent / "httpbridge"
LINES = b"".join(
    json.dumps(
        {"timestamp": f"2026-11-23T20:15:{number:02}.000000Z", "level": "error" if number % 4 == 0 else "info",
         "service": "api", "environment": "production", "message": f"message {number}",
         "metadata": {"order": number}},
        separators=(",", ":"),
    ).encode() + b"\n"
    for number in range(20)
)  # fmt: skip


class Commands:
    """The command line, with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        variables = {"HTTPBRIDGE_STATE_DIR": str(directory / "state")}
        self.environ = os.environ | variables
        """Of what is executed."""
        self._clean = clean_environment() | variables

    def run(self, *arguments: object, status: int = 0, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:  # noqa: A002 - as in subprocess
        command: list[str | Path] = [HTTPBRIDGE, *map(str, arguments)]
        if forks.in_use and forks.in_use.can_start(self._clean):
            done = forks.in_use.run(command, self._clean, self.directory, input, DEADLINE_SECONDS)
        else:
            done = subprocess.run(command, env=self._clean, cwd=self.directory, capture_output=True, input=input)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        return done


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def test_what_is_imported_is_exported_as_it_was(commands: Commands, tmp_path: Path) -> None:
    done = commands.run("import", "shop", "-", input=LINES)
    assert done.stderr.startswith(b"imported 20 entries, ")
    assert (tmp_path / "state" / "logs.db").stat().st_mode & 0o777 == 0o600
    done = commands.run("export", "shop")
    assert done.stdout == LINES
    assert done.stderr.startswith(b"exported 20 entries, ")
    assert done.stderr.count(b"\n") == 1  # it is no terminal
    for name, opened in (("a.ndjson", open), ("a.ndjson.gz", gzip.open), ("a.ndjson.zst", zstd.open)):
        assert commands.run("export", "shop", "--output", name).stdout == b""
        with opened(tmp_path / name, "rb") as file:
            assert file.read() == LINES
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        commands.run("import", f"copy of {name}", name)
        assert commands.run("export", f"copy of {name}").stdout == LINES
    assert {path.name for path in tmp_path.iterdir()} == {"state", "a.ndjson", "a.ndjson.gz", "a.ndjson.zst"}

    errors = commands.run(
        "export", "shop", "--level", "error", "--since", "2026-11-23T20:15:01Z", "--until", "1s"
    ).stdout
    assert [json.loads(line)["message"] for line in errors.splitlines()] == [f"message {n}" for n in (4, 8, 12, 16)]
    assert b"no logs of project shop match" in commands.run("export", "shop", "--text", "nothing").stderr
    assert b"no logs of project none\n" in commands.run("export", "none").stderr

    as_json = commands.run("logs", "shop", "--json").stdout  # has more fields
    commands.run("import", "again", "-", input=as_json)
    assert commands.run("export", "again").stdout == LINES


def test_no_file_is_written_over_and_no_half_of_one_is_left(commands: Commands, tmp_path: Path) -> None:
    commands.run("import", "shop", "-", input=LINES)
    kept = tmp_path / "kept"
    kept.write_bytes(b"precious")
    done = commands.run("export", "shop", "--output", "kept", status=2)
    assert b"kept exists; --force writes over it" in done.stderr
    assert kept.read_bytes() == b"precious"
    link = tmp_path / "link"
    link.symlink_to(kept)
    commands.run("export", "shop", "--output", "link", "--force")
    assert (kept.read_bytes(), link.is_symlink()) == (LINES, True)
    assert b"is not a file" in commands.run("export", "shop", "--output", tmp_path, "--force", status=2).stderr
    assert b"No such file" in commands.run("export", "shop", "--output", "none/a", status=2).stderr

    database = tmp_path / "state" / "logs.db"
    damaged = database.read_bytes().replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe")
    database.write_bytes(damaged)
    done = commands.run("export", "shop", "--output", "half", status=1)
    assert b"chunk 1 of the log store is damaged: its content cannot be read" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"state", "kept", "link"}
    done = commands.run("store", "check", status=1)
    assert done.stdout == (
        b"chunk 1 of project shop, 20 entries from 2026-11-23T20:15:00.000000Z to 2026-11-23T20:15:19.000000Z:"
        b" its content cannot be read: ZstdError\n"
    )
    assert b"checked 1 chunk, 20 entries, " in done.stderr
    assert done.stderr.endswith(b": 1 damaged\n")
    selected = ("--since", "2026-11-23T20:15:00Z", "--until", "2026-11-23T20:15:19.000001Z")
    commands.run("erase", "shop", *selected, "--yes")  # which need not read what it erases
    assert commands.run("store", "check").stderr.endswith(b": 0 damaged\n")


def test_a_terminal_is_not_told_what_to_do(commands: Commands) -> None:
    line = LINES.splitlines(keepends=True)[0].replace(b"message 0", "\x9b31m\u202e\u00e9".encode())
    commands.run("import", "shop", "-", input=line)
    assert commands.run("export", "shop").stdout == line
    ours, terminal = pty.openpty()
    subprocess.run(
        [HTTPBRIDGE, "export", "shop"],
        check=True,
        env=commands.environ,
        cwd=commands.directory,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert "\\u009b31m\\u202e\u00e9".encode() in shown
    assert json.loads(shown) == json.loads(line)


def test_a_reader_that_has_had_enough_ends_an_export(commands: Commands) -> None:
    commands.run("import", "shop", "-", input=LINES)
    buffered = {name: value for name, value in commands.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([HTTPBRIDGE, "export", "shop"], env=buffered, stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([HTTPBRIDGE, "export", "shop"], env=buffered, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"httpbridge: standard output: No space left on device\n")


def test_an_export_that_is_interrupted_says_so_and_leaves_no_file(commands: Commands, tmp_path: Path) -> None:
    commands.run("import", "shop", "-", input=LINES * 5000)
    reader, writer = os.pipe()
    command: list[str | Path] = [HTTPBRIDGE, "export", "shop"]
    with subprocess.Popen(command, env=commands.environ, stdout=writer, stderr=subprocess.PIPE) as exporter:
        os.close(writer)
        assert os.read(reader, 1) == b"{"
        exporter.send_signal(signal.SIGINT)
        os.close(reader)
        assert exporter.stderr is not None
        assert exporter.stderr.read() == b"\nAborted!\n"
    assert exporter.returncode == 1
    for name in ("a", "a.gz", "a.zst"):
        with pytest.raises(KeyboardInterrupt), written(tmp_path / name, is_forced=False) as output:  # noqa: PT012
            output.write(LINES)
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyboardInterrupt
        assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_file_that_appears_during_an_export_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(OutputError, match="exists by now"), written(path, is_forced=False) as output:  # noqa: PT012
        output.write(b"exported")
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_is_refused_ends_an_import_unless_it_is_skipped(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(LINES * 300 + b'{"level":"info"}\n' + LINES)
    done = commands.run("import", "shop", "bad", status=1)
    assert done.stderr.splitlines() == [
        b"4,000 entries up to line 4,000 are stored, and not again if the same file is imported within 24 hours",
        b"httpbridge: bad, line 6001: message is required",
    ]
    done = commands.run("import", "shop", "bad", "--skip-bad")
    assert done.stderr.startswith(b"bad, line 6001: message is required; skipped\nimported 6,020 entries, ")
    assert done.stderr.endswith(b"; 1 line skipped\n")
    assert commands.run("export", "shop").stdout == LINES * 301


def test_a_file_that_cannot_be_read_is_named(commands: Commands, tmp_path: Path) -> None:
    assert b"httpbridge: none: No such file or directory\n" in commands.run("import", "shop", "none", status=1).stderr
    whole = zstd.compress(LINES)
    for name, content, reason in (
        ("cut.zst", whole[:-9], b"cut.zst: cannot be read to its end: Compressed file ended"),
        ("cut.gz", gzip.compress(LINES)[:-9], b"cut.gz: cannot be read to its end: Compressed file ended"),
        ("other", b"PK\x03\x04" + LINES, b"other: looks like zip, which is not read here"),
    ):
        (tmp_path / name).write_bytes(content)
        done = commands.run("import", "shop", name, status=1)
        assert b"httpbridge: " + reason in done.stderr
    assert b"no logs of project shop" in commands.run("export", "shop").stderr
    assert commands.run("import", "shop", "-", input=b"").stderr.startswith(b"imported 0 entries, ")


def test_the_store_is_shown_by_project(commands: Commands) -> None:
    assert b"there is no log store" in commands.run("store", status=2).stderr
    commands.run("import", "shop", "-", input=LINES)
    assert b"0 damaged" in commands.run("store", "check").stderr
    commands.run("import", "a\x1b project", "-", input=LINES)
    header, *rows = commands.run("store").stdout.decode().splitlines()
    assert header.split() == ["project", "entries", "stored", "of", "entries", "ratio", "chunks", "oldest", "newest"]
    assert [row.split()[-1] for row in rows] == ["2026-11-23T20:15:19Z"] * 2
    assert "\x1b" not in rows[0]
    first, second = json.loads(commands.run("store", "--json").stdout)
    assert (first["project_id"], second["project_id"]) == ("a\x1b project", "shop")
    assert (second["entries"], second["chunks"], second["oldest"]) == (20, 1, "2026-11-23T20:15:00.000000Z")
    assert second["bytes_stored"] < second["bytes_of_entries"]


def test_duckdb_and_pandas_open_an_export(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very lines of docs/operations.md."""
    commands.run("import", "shop", "-", input=LINES)
    for ending in ("zst", "gz"):
        commands.run("export", "shop", "--output", f"shop.ndjson.{ending}")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    (query,) = (block.split("\n```")[0] for block in text.split("```sql\n")[1:] if "shop.ndjson" in block)
    result = duckdb.sql(query)
    assert result is not None
    assert result.fetchall() == [("api", 5)]
    (lines,) = (block.split("\n```")[0] for block in text.split("```python\n")[1:] if "shop.ndjson" in block)
    names: dict[str, Any] = {"pd": pd}
    exec(lines, names)
    assert names["errors"].to_dict() == {"api": 5}
