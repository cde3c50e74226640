"""The bridge's environment: values that stop the start, each with its variable's name."""

import pytest

from authsvc.runtime.environment import ConfigurationError
from httpbridge.config import Config


def test_a_token_that_cannot_be_sent_stops_the_start() -> None:
    """Sent anyway, it would fail each request with a 500."""
    with pytest.raises(ConfigurationError, match=r"^HTTPBRIDGE_KEY_SERVICE_TOKEN: expected a token"):
        Config.from_environment({"HTTPBRIDGE_KEY_SERVICE_TOKEN": "käse"})


@pytest.mark.parametrize("name", ["key_service_token", "dashboard_token", "admin_token"])
def test_white_space_around_a_token_does_not_count(name: str) -> None:
    variable = f"HTTPBRIDGE_{name.upper()}"
    secret = "a-token-of-thirty-two-characters"
    token = getattr(Config.from_environment({variable: f" {secret}\n"}), name)
    assert token.reveal() == secret
    with pytest.raises(ConfigurationError, match=f"^{variable}: expected a value"):
        Config.from_environment({variable: " \n"})
