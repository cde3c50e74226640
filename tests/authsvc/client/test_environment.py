"""Values of configuration: what is taken, and that what is refused is named and not repeated."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from authsvc.client.environment import ConfigurationError, Secret, Token, read
from authsvc.client.private_files import kept_token
from authsvc.client.validator import KeyValidator


class Config(msgspec.Struct, frozen=True):
    """Has one of each kind of secret."""

    token: Token | None = None
    url: Secret | None = None


TOKEN = "a-token-of-thirty-two-characters"


@pytest.mark.parametrize("text", [TOKEN, TOKEN + "\n", f" \t{TOKEN}\r\n"])
def test_white_space_around_a_token_does_not_count(text: str) -> None:
    """A secrets file often ends with a line feed."""
    config = read(Config, "X_", {"X_TOKEN": text})
    assert config.token is not None
    assert config.token.reveal() == TOKEN
    assert TOKEN not in repr(config)


@pytest.mark.parametrize("text", ["käse", "two words", "two\nlines", "\n", "\udcff", "\x7f", "tok\0en"])
def test_a_token_that_cannot_be_sent_is_refused_with_its_variable_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Config, "X_", {"X_TOKEN": text})
    assert str(caught.value) == "X_TOKEN: expected a token: printable ASCII without spaces"


@pytest.mark.parametrize("text", ["x", TOKEN[1:], f"  {TOKEN[1:]}\n"])
def test_a_token_that_can_be_guessed_is_refused_with_what_makes_one(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Config, "X_", {"X_TOKEN": text})
    assert str(caught.value) == (
        "X_TOKEN: expected a token of at least 32 characters, such as 'openssl rand -hex 32' prints"
    )


def test_other_secrets_are_taken_as_they_are() -> None:
    config = read(Config, "X_", {"X_URL": "postgresql://käse:p w@host/name"})
    assert config.url is not None
    assert config.url.reveal() == "postgresql://käse:p w@host/name"


async def test_a_validator_refuses_a_token_that_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        KeyValidator("127.0.0.1:1", "käse")


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
            kept_token(path)
        assert not list(tmp_path.iterdir())
    token = kept_token(path)
    assert path.read_text() == token.reveal() + "\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept_token(path).reveal() == token.reveal()
    assert list(tmp_path.iterdir()) == [path]
