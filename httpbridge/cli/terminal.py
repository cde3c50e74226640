"""How long-running commands show how far they are: one line on standard error that is written anew."""

import shutil
import sys
import time
from collections.abc import Callable

import click

from authsvc.runtime.process import discard
from httpbridge.text import byte_text

_UPDATE_SECONDS = 0.2


class ProgressLine:
    """The line; there is none where standard error is no terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._began_at = time.monotonic()
        self._shown_at = 0.0
        self._is_empty = True

    @property
    def seconds(self) -> float:
        """Since it was made; never 0."""
        return max(time.monotonic() - self._began_at, 1e-6)

    def update(self, text: Callable[[], str]) -> None:
        """Show a text instead of the last one, unless that was only just shown."""
        now = time.monotonic()
        if self._is_shown and now - self._shown_at >= _UPDATE_SECONDS:
            self._shown_at = now
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{text()[:width]}\x1b[K")
            self._is_empty = False

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if not self._is_empty:
            self._write("\r\x1b[K")
            self._is_empty = True

    def amounts(self, entries: int, size: int) -> str:
        """Say how many entries and bytes these are, and how many a second."""
        seconds = self.seconds
        return (
            f"{counted(entries)}, {byte_text(size)} in {seconds:.1f} s"
            f" ({entries / seconds:,.0f} entries, {byte_text(size / seconds)} a second)"
        )

    def _write(self, text: str) -> None:
        try:
            click.echo(text, err=True, nl=False)
        except OSError:
            discard(sys.stderr)
            self._is_shown = False


def counted(number: int, noun: str = "entry", plural: str = "entries") -> str:
    """Write a number with what it counts."""
    return f"{number:,} {noun if number == 1 else plural}"
