"""The bridge's environment: values that stop the start, each with its variable's name."""

import pytest

from authsvc.client.environment import ConfigurationError
from httpbridge.config import Config


def test_a_token_that_cannot_be_sent_stops_the_start() -> None:
    """Sent anyway, it would fail each request with a 500."""
    with pytest.raises(ConfigurationError, match=r"^HTTPBRIDGE_KEY_SERVICE_TOKEN: expected a token"):
        Config.from_environment({"HTTPBRIDGE_KEY_SERVICE_TOKEN": "käse"})


def test_a_token_may_end_with_a_line_feed() -> None:
    token = Config.from_environment({"HTTPBRIDGE_KEY_SERVICE_TOKEN": "secret\n"}).key_service_token
    assert token is not None
    assert token.reveal() == "secret"
