"""Values of configuration: what is taken, and that what is refused is named and not repeated."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from authsvc.client.validator import KeyValidator
from authsvc.runtime.environment import Address, ConfigurationError, ListenAddress, Secret, Token, read
from authsvc.runtime.logging import LogLevel
from authsvc.runtime.networks import Networks


class Config(msgspec.Struct, frozen=True):
    """Has one of each kind of value."""

    token: Token | None = None
    url: Secret | None = None
    switch: bool = False
    level: LogLevel = LogLevel.INFO
    count: Annotated[int, msgspec.Meta(ge=1, le=9000)] | None = None
    bytes: Annotated[int, msgspec.Meta(ge=1)] = 1
    seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 1
    file: Path | None = None
    listen: ListenAddress = ListenAddress("127.0.0.1", 1)
    service: Address = Address("127.0.0.1", 1)
    text: str | None = None
    networks: Networks = Networks()


TOKEN = "a-token-of-thirty-two-characters"


@pytest.mark.parametrize("text", [TOKEN, TOKEN + "\n", f" \t{TOKEN}\r\n"])
def test_white_space_around_a_token_does_not_count(text: str) -> None:
    """A secrets file often ends with a line feed."""
    config = read(Config, "X_", {"X_TOKEN": text})
    assert config.token is not None
    assert config.token.reveal() == TOKEN
    assert TOKEN not in repr(config)


@pytest.mark.parametrize("text", ["käse", "two words", "two\nlines", "\udcff", "\x7f", "tok\0en"])
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


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("switch", "true", True),
        *(("switch", word, True) for word in ("True", "TRUE", "yes", "Yes", "on", "ON", "1")),
        *(("switch", word, False) for word in ("False", "no", "off", "0")),
        ("level", "WARNING", LogLevel.WARNING),
        ("level", "Debug", LogLevel.DEBUG),
        ("count", "5000", 5000),
        ("count", "1e3", 1000),
        ("seconds", "1.5", 1.5),
        ("file", "var/key.pem", Path("var/key.pem")),
        ("file", "/a?b/c#d/e%41/f:g @h", Path("/a?b/c#d/e%41/f:g @h")),
        ("file", "~/key.pem", Path("/home/of ann/key.pem")),
        ("listen", "127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("listen", "localhost:8080", Address("localhost", 8080)),
        ("listen", "[::1]:8080", Address("::1", 8080)),
        ("listen", ":8080", Address("*", 8080)),
        ("listen", "*:8080", Address("*", 8080)),
        ("listen", "0.0.0.0:8080", Address("0.0.0.0", 8080)),
        ("service", "keys.internal:50051", Address("keys.internal", 50051)),
        ("service", ":50051", Address("127.0.0.1", 50051)),
        ("service", "*:50051", Address("127.0.0.1", 50051)),
        ("service", "0.0.0.0:50051", Address("127.0.0.1", 50051)),
        ("service", "[::]:50051", Address("::1", 50051)),
        ("text", "https://logs.example", "https://logs.example"),
        ("networks", "10.0.0.0/8", Networks.parse("10.0.0.0/8")),
    ],
)
def test_values_are_taken_as_operators_write_them(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str, meant: Any
) -> None:
    """Also with white space and line ends around, which a file or a manifest leaves there."""
    monkeypatch.setenv("HOME", "/home/of ann")
    for text in (written, f"{written}\n", f" \t{written} \r\n"):
        assert getattr(read(Config, "X_", {f"X_{name.upper()}": text}), name) == meant


DIGITS = "in digits and without a unit"


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        *(
            ("count", text, f"a whole number from 1 to 9000, {DIGITS}")
            for text in ("5_000", "5k", "60s", "0", "9001", "null")
        ),
        *(
            ("bytes", text, f"a whole number of at least 1, {DIGITS}")
            for text in ("5MiB", "1,000", "1.5", "-1", "0x10")
        ),
        *(("seconds", text, f"a number from 0 to 60, {DIGITS}") for text in ("60s", "1m", "nan", "inf", "1,5", "61")),
        *(("switch", text, "true or false") for text in ("maybe", "2", "y", "enabled", "null")),
        ("level", "warn", "one of debug, info, warning, error"),
        *(
            (name, text, "HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
            for name in ("listen", "service")
            for text in ("8080", "localhost", "::1:8080", "localhost:65536", "http://localhost:8080", "localhost:http")
        ),
        ("listen", "a..b:8080", "HOST:PORT with the name of a host"),
        ("file", "/\udcff", "a path in UTF-8"),
        *(
            (name, text, "a value: it is white space alone")
            for name in ("token", "url", "switch", "count", "file", "listen", "text", "networks")
            for text in (" ", "\r\n")
        ),
        *(
            (name, text, "a value without quotes around it")
            for name in ("token", "url", "switch", "count", "file", "listen", "text", "networks")
            for text in (f'"{TOKEN}"', f"'{TOKEN}' ")
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_variable_and_what_is_expected(
    name: str, written: str, expected: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Config, "X_", {f"X_{name.upper()}": written})
    assert str(caught.value) == f"X_{name.upper()}: expected {expected}"


def test_the_home_directory_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^X_FILE: nobody knows the home directory of ~no-such-user$"):
        read(Config, "X_", {"X_FILE": "~no-such-user/key.pem"})


@pytest.mark.parametrize("text", [":8080", "*:8080", "0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "host:8080"])
def test_what_others_reach_is_not_loopback(text: str) -> None:
    assert not ListenAddress.parse(text).is_loopback


@pytest.mark.parametrize("text", [":8080", "*:8080", "0.0.0.0:8080", "[::]:8080", "Localhost:8080", "127.1.2.3:8080"])
def test_where_this_machine_reaches_what_it_listens_on_is_loopback(text: str) -> None:
    """So a token goes there in the clear, and a certificate for localhost fits."""
    assert ListenAddress.parse(text).to_connect().is_loopback
    assert Address.parse(text).is_loopback
