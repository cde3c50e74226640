"""A file that is there whole or not at all, and standard output likewise written; compressed by the file's name."""

import codecs
import gzip
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Protocol

import click

from authsvc.runtime.commands import OutputError, writing
from httpbridge.log_store.zstandard import zstd

_GZIP_LEVEL = 6
_ZSTD_OPTIONS = {int(zstd.CompressionParameter.checksum_flag): 1}


class Writable(Protocol):
    """What is written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take all of it, compressed or not."""


@contextmanager
def written(path: Path | None, *, is_forced: bool) -> Iterator[Writable]:
    """Lend the output, standard output for None; whatever is raised meanwhile, no file is left.

    Nothing that exists is written over, unless it is forced. Raises click.BadParameter for what is there already or
    cannot be made, OutputError for what cannot be written, and BrokenPipeError where whoever read it has had enough.
    """
    if path is None:
        if not isinstance(sys.stdout, TextIOWrapper):
            raise OutputError("standard output is closed")
        with writing():
            yield _Terminal(sys.stdout) if sys.stdout.isatty() else sys.stdout.buffer
            sys.stdout.flush()
        return
    path = path.resolve()  # of a link, the file that it names
    if path.exists() and not path.is_file():
        raise _refused(f"{path} is not a file; without --output it goes to standard output")
    if path.exists() and not is_forced:
        raise _refused(f"{path} exists; --force writes over it")
    part = path.with_name(f".{path.name[:200]}.{token_hex(4)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # logs are for nobody else
    except OSError as error:
        raise _refused(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            with _compressed(file, path.suffix) as output:
                yield output
            file.flush()
            os.fsync(descriptor)
        _name(part, path, is_forced=is_forced)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from None
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


class _Terminal:
    """Takes lines of JSON, and escapes in them what a terminal would act on."""

    def __init__(self, output: TextIOWrapper) -> None:
        self._output = output
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def write(self, data: bytes | memoryview, /) -> object:
        return self._output.write("".join(map(_shown, self._decode(bytes(data)))))


def _shown(char: str) -> str:
    return char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]


def _refused(reason: str) -> click.BadParameter:
    return click.BadParameter(reason, param_hint="--output")


@contextmanager
def _compressed(file: BinaryIO, suffix: str) -> Iterator[Writable]:
    if suffix == ".zst":
        with zstd.ZstdFile(file, "w", options=_ZSTD_OPTIONS) as output:
            yield output
    elif suffix == ".gz":
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as output:
            yield output
    else:
        yield file


def _name(part: Path, path: Path, *, is_forced: bool) -> None:
    """Give the file its name, durably."""
    if is_forced:
        part.replace(path)
    else:
        try:
            path.hardlink_to(part)  # unlike a renaming, it does not replace what has come there meanwhile
        except FileExistsError:
            raise OutputError(f"{path} exists by now; --force writes over it") from None
        except OSError:  # a file system without links
            part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
