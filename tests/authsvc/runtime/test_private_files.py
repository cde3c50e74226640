"""Files and directories that nobody else may change or read."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from authsvc.client.channel import TokenFile
from authsvc.client.verdicts import KeyServiceUnavailableError
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.private_files import load_or_create_token, make_directory

STRANGE_ID = 54321
"""Of a user and a group that nobody here belongs to."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@contextmanager
def no_room() -> Iterator[None]:
    """Let every write to a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_token_that_could_not_be_written_is_made_at_the_next_start(tmp_path: Path) -> None:
    """Which may have the same process id, as the first process of a container has."""
    path = tmp_path / "admin-token"
    for _ in range(2):
        with no_room(), pytest.raises(ConfigurationError, match=f"^{path}: File too large$"):
            load_or_create_token(path)
        assert not list(tmp_path.iterdir())
    token = load_or_create_token(path)
    assert path.read_text() == token.reveal() + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_token(path).reveal() == token.reveal()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_directory_that_is_made_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_directory(tmp_path / "new" / "state", "X_STATE_DIR")
        load_or_create_token(tmp_path / "new" / "state" / "token")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700
    make_directory(tmp_path / "new" / "state", "X_STATE_DIR")


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o775, 0o770, 0o2775, 0o2770])
def test_a_directory_that_its_group_can_write_is_taken_if_the_group_is_ours(tmp_path: Path, mode: int) -> None:
    """So are a user's own files with umask 002, and a volume that Kubernetes gave to the pod's group (fsGroup)."""
    tmp_path.chmod(mode)
    make_directory(tmp_path, "X_STATE_DIR")


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o703, 0o1777, 0o722])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Sticky or not: who may make a file there can make a token."""
    tmp_path.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        make_directory(tmp_path, "X_STATE_DIR")
    assert str(caught.value) == (
        f"X_STATE_DIR: {tmp_path}: others can write to it (mode {mode & 0o777:04o}): run 'chmod go-rwx {tmp_path}', "
        "or name a directory inside it, which is then made"
    )
    make_directory(tmp_path / "inside", "X_STATE_DIR")


@as_root
def test_a_directory_that_a_strange_group_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    os.chown(tmp_path, -1, STRANGE_ID)
    with pytest.raises(ConfigurationError, match="others can write to it"):
        make_directory(tmp_path, "X_STATE_DIR")
    tmp_path.chmod(0o750)
    make_directory(tmp_path, "X_STATE_DIR")


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Root could use it, and the other one could replace what root finds there."""
    os.chown(tmp_path, STRANGE_ID, -1)
    with pytest.raises(ConfigurationError, match=rf"belongs to another user \({STRANGE_ID}\): .*'chown 0 {tmp_path}'$"):
        make_directory(tmp_path, "X_STATE_DIR")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_a_kept_token_may_be_its_groups(tmp_path: Path, mode: int) -> None:
    """Kubernetes makes it so in a volume at the pod's next start (fsGroup)."""
    token = load_or_create_token(tmp_path / "token")
    (tmp_path / "token").chmod(mode)
    assert load_or_create_token(tmp_path / "token").reveal() == token.reveal()
    assert TokenFile(tmp_path / "token", is_private=True).read().reveal() == token.reveal()


@pytest.mark.parametrize(("mode", "verb"), [(0o644, "read"), (0o604, "read"), (0o602, "write to"), (0o666, "write to")])
def test_a_kept_token_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int, verb: str) -> None:
    path = tmp_path / "token"
    token = load_or_create_token(path).reveal()
    path.chmod(mode)
    reason = f"{path}: others can {verb} it (mode {mode:04o}): run 'chmod go-rwx {path}'"
    with pytest.raises(ConfigurationError) as caught:
        load_or_create_token(path)
    assert str(caught.value) == reason
    with pytest.raises(KeyServiceUnavailableError) as fault:
        TokenFile(path, is_private=True).read()
    assert str(fault.value) == f"there is no token: {reason}"
    assert TokenFile(path).read().reveal() == token, "one that a caller names is the caller's to protect"


@as_root
def test_a_kept_token_that_a_strange_group_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create_token(tmp_path / "token")
    (tmp_path / "token").chmod(0o640)
    os.chown(tmp_path / "token", -1, STRANGE_ID)
    with pytest.raises(ConfigurationError, match="others can read it"):
        load_or_create_token(tmp_path / "token")
