"""How long-running commands show how far they are."""

import sys

import pytest

from httpbridge.cli.terminal import ProgressLine, counted
from httpbridge.text import byte_text


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
    now += 0.4
    line.update(lambda: "x" * 100)
    now += 0.5
    assert line.amounts(1000, 2_000_000) == "1,000 entries, 2.00 MB in 1.0 s (1,000 entries, 2.00 MB a second)"
    line.clear()
    line.clear()
    assert capsys.readouterr().err == f"\rfirst\x1b[K\r{'x' * 19}\x1b[K\r\x1b[K"
