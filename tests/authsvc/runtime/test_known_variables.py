"""Names of environment variables: a misspelt one stops the start, whichever service it is meant for."""

from typing import Any

import msgspec
import pytest

from authsvc.config import Config as KeyServiceConfig
from authsvc.runtime.environment import KNOWN, ConfigurationError
from httpbridge.config import Config as BridgeConfig

CONFIGS = pytest.mark.parametrize("config", [KeyServiceConfig, BridgeConfig])


def test_the_names_that_are_known_are_those_that_the_services_read() -> None:
    read = {
        prefix + field.name.upper()
        for struct, prefix in ((KeyServiceConfig, "AUTHSVC_"), (BridgeConfig, "HTTPBRIDGE_"))
        for field in msgspec.structs.fields(struct)
    }
    assert read | {"AUTHSVC_API_KEY"} == KNOWN


@CONFIGS
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("AUTHSVC_TLS_CLIENTCA", "AUTHSVC_TLS_CLIENT_CA"),
        ("AUTHSVC_CLIENT_CA", "AUTHSVC_TLS_CLIENT_CA"),
        ("AUTHSVC_LISTEN_", "AUTHSVC_LISTEN"),
        ("AUTHSVC_TLS_CERTIFICATE", "AUTHSVC_TLS_CERT"),
        ("AUTHSVC_RATE_LIMIT_PER_MINUTE", "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE"),
        ("HTTPBRIDGE_LOGSTORE_URL", "HTTPBRIDGE_LOG_STORE_URL"),
        ("HTTPBRIDGE_BODY_MAX_BYTES", "HTTPBRIDGE_BODY_BYTES_MAX"),
        ("authsvc_tls_client_ca", "AUTHSVC_TLS_CLIENT_CA"),
        ("HttpBridge_Listen", "HTTPBRIDGE_LISTEN"),
    ],
)
def test_an_unknown_name_stops_the_start_with_the_nearest_known_one(config: Any, name: str, nearest: str) -> None:
    """Of either service: what is not read is not in force."""
    with pytest.raises(ConfigurationError) as caught:
        config.from_environment({"PATH": "/bin", name: "x"})
    assert str(caught.value) == f"{name}: there is no such variable; did you mean {nearest}?"


@CONFIGS
@pytest.mark.parametrize("service", ["AUTHSVC", "HTTPBRIDGE", "AUTHSVC_GRPC", "HTTPBRIDGE_0"])
def test_what_kubernetes_and_docker_put_there_for_a_service_of_our_name_is_ignored(config: Any, service: str) -> None:
    injected = {
        f"{service}_SERVICE_HOST": "10.0.0.11",
        f"{service}_SERVICE_PORT": "50051",
        f"{service}_SERVICE_PORT_GRPC": "50051",
        f"{service}_PORT": "tcp://10.0.0.11:50051",
        f"{service}_PORT_50051_TCP": "tcp://10.0.0.11:50051",
        f"{service}_PORT_50051_TCP_PROTO": "tcp",
        f"{service}_PORT_50051_TCP_PORT": "50051",
        f"{service}_PORT_50051_TCP_ADDR": "10.0.0.11",
        f"{service}_PORT_53_UDP_ADDR": "10.0.0.11",
    }
    config.from_environment(injected)


def test_no_variable_of_ours_looks_like_one_that_is_injected() -> None:
    for name in KNOWN:
        with pytest.raises(ConfigurationError, match=f"^{name}_: "):
            KeyServiceConfig.from_environment({f"{name}_": "x"})


@CONFIGS
def test_variables_of_others_and_empty_ones_are_ignored(config: Any) -> None:
    config.from_environment({"authsvc_pid": "7", "MY_AUTHSVC_LISTEN": "x", "AUTHSVCX": "x", "AUTHSVC_OLD": ""})


@CONFIGS
def test_each_service_starts_with_all_variables_of_both(config: Any) -> None:
    config.from_environment({name: "" if name.startswith(config.PREFIX) else "x" for name in KNOWN})
    KeyServiceConfig.from_environment({"AUTHSVC_API_KEY": "x"})  # of `authsvc validate`
