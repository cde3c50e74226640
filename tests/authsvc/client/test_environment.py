"""Values of configuration: what is taken, and that what is refused is named and not repeated."""

import msgspec
import pytest

from authsvc.client.environment import ConfigurationError, Secret, Token, read
from authsvc.client.validator import KeyValidator


class Config(msgspec.Struct, frozen=True):
    """Has one of each kind of secret."""

    token: Token | None = None
    url: Secret | None = None


@pytest.mark.parametrize("text", ["a-token", "a-token\n", " \ta-token\r\n"])
def test_white_space_around_a_token_does_not_count(text: str) -> None:
    """A secrets file often ends with a line feed."""
    config = read(Config, "X_", {"X_TOKEN": text})
    assert config.token is not None
    assert config.token.reveal() == "a-token"
    assert "a-token" not in repr(config)


@pytest.mark.parametrize("text", ["käse", "two words", "two\nlines", "\n", "\udcff", "\x7f", "tok\0en"])
def test_a_token_that_cannot_be_sent_is_refused_with_its_variable_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Config, "X_", {"X_TOKEN": text})
    assert str(caught.value) == "X_TOKEN: expected a token: printable ASCII without spaces"


def test_other_secrets_are_taken_as_they_are() -> None:
    config = read(Config, "X_", {"X_URL": "postgresql://käse:p w@host/name"})
    assert config.url is not None
    assert config.url.reveal() == "postgresql://käse:p w@host/name"


async def test_a_validator_refuses_a_token_that_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        KeyValidator("127.0.0.1:1", "käse")
