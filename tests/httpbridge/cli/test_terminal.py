"""How long-running commands show how far they are."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from httpbridge.cli.terminal import ProgressLine, byte_text, counted
from tests.httpbridge.cli.test_store_commands import HTTPBRIDGE, LINES, Commands, commands

__all__ = ["commands"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (999, "999 B"), (999.4, "999 B"), (999.9, "1.00 kB"), (1000, "1.00 kB"), (9994, "9.99 kB"),
        (9995, "10.0 kB"), (99_950, "100 kB"), (999_499, "999 kB"), (999_600, "1.00 MB"), (5e15, "5000 TB"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits(number: float, text: str) -> None:
    assert byte_text(number) == text


def test_numbers_have_their_noun() -> None:
    assert [counted(number) for number in (0, 1, 1200)] == ["0 entries", "1 entry", "1,200 entries"]
    assert counted(2, "line", "lines") == "2 lines"


def test_without_a_terminal_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.update(lambda: "never asked for")
    line.clear()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_is_written_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    line = ProgressLine()
    line.update(lambda: "first")
    now += 0.1
    line.update(lambda: "too soon")
    now += 0.1
    line.update(lambda: "x" * 100)
    now += 0.8
    assert line.amounts(1000, 2_000_000) == "1,000 entries, 2.00 MB in 1.0 s (1,000 entries, 2.00 MB a second)"
    line.clear()
    line.clear()
    assert capsys.readouterr().err == f"\rfirst\x1b[K\r{'x' * 19}\x1b[K\r\x1b[K"


def test_an_interrupted_export_leaves_no_file(commands: Commands, tmp_path: Path) -> None:
    """It is interrupted while its second file, a pipe for what is compressed, is not read."""
    commands.run("import", "shop", "-", input=LINES * 5000)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [HTTPBRIDGE, "export", "shop"], env=commands.environ, stdout=writer, stderr=subprocess.PIPE
    ) as done:
        os.close(writer)
        assert os.read(reader, 1) == b"{"
        done.send_signal(signal.SIGINT)
        os.close(reader)
        assert done.stderr is not None
        assert b"Traceback" not in done.stderr.read()
    assert done.returncode == 1
