"""What both services' configurations have in common: files that variables name, addresses, places of databases."""

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from authsvc.app import migrate
from authsvc.config import Config as KeyServiceConfig
from authsvc.runtime.environment import Address, ConfigurationError
from httpbridge.config import Config as BridgeConfig
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.sink import open_sql_sink
from tests.clocks import Clock

SERVICES = pytest.mark.parametrize(
    ("config", "prefix"), [(KeyServiceConfig, "AUTHSVC_"), (BridgeConfig, "HTTPBRIDGE_")]
)
NAMES = ["a?b", "a#b", "a%41b", "%", "a:b@c", "a b", "ä", "a\\b", "a'b\"c", "?mode=memory", "~", "a;b&c=d", "*"]


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("name", NAMES)
async def test_the_databases_are_in_the_state_directory_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Characters that mean something in a URL do not: one put keys and logs into one file outside of the directory."""
    state = str(tmp_path / name / "state")
    await migrate(KeyServiceConfig.from_environment({"AUTHSVC_STATE_DIR": state}))
    bridge = BridgeConfig.from_environment({"HTTPBRIDGE_STATE_DIR": state})
    sink = await open_sql_sink(bridge.store_url(), monotonic=Clock())
    await sink.check()
    store = ReadStore(bridge.store_url())
    store.check_exists()
    await store.close()
    await sink.close()
    assert files(tmp_path) == {name}
    assert files(Path(state)) == {"authsvc.db", "logs.db"}
    for file, table in (("authsvc.db", "projects"), ("logs.db", "chunks")):
        connection = sqlite3.connect(Path(state, file))
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall(), table
        connection.close()


@pytest.mark.parametrize("name", ["file:x", ":memory:", "~ann", "a?b"])
def test_a_relative_state_directory_is_one_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (
        KeyServiceConfig(state_dir=Path(name)).store_url(),
        BridgeConfig(state_dir=Path(name)).store_url(),
    ):
        assert url.startswith(f"sqlite:///{tmp_path}/")


def test_a_message_names_the_variable_that_says_where_the_database_is() -> None:
    url = "sqlite:///x.db"
    assert KeyServiceConfig.from_environment({}).store_variable == "AUTHSVC_STATE_DIR"
    assert KeyServiceConfig.from_environment({"AUTHSVC_DATABASE_URL": url}).store_variable == "AUTHSVC_DATABASE_URL"
    assert BridgeConfig.from_environment({}).store_variable == "HTTPBRIDGE_STATE_DIR"
    bridge = BridgeConfig.from_environment({"HTTPBRIDGE_LOG_STORE_URL": url})
    assert bridge.store_variable == "HTTPBRIDGE_LOG_STORE_URL"


@SERVICES
@pytest.mark.parametrize("listen", [":0", "*:0", "0.0.0.0:0", "[::]:0"])
def test_every_interface_is_exposed(config: Any, prefix: str, listen: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{prefix}LISTEN=.* is not loopback"):
        config.from_environment({f"{prefix}LISTEN": listen}).check_exposure()
    config.from_environment({f"{prefix}LISTEN": listen, f"{prefix}ALLOW_INSECURE": "yes"}).check_exposure()
    config.from_environment({f"{prefix}LISTEN": "localhost:0"}).check_exposure()


def test_what_listens_on_every_interface_is_called_on_this_machine() -> None:
    """In the clear, as it does not leave it; and the lines to copy have an address."""
    keys = KeyServiceConfig.from_environment({"AUTHSVC_LISTEN": ":50051"})
    keys.check_connection()
    assert keys.service_address() == Address("127.0.0.1", 50051)
    bridge = BridgeConfig.from_environment({"HTTPBRIDGE_LISTEN": ":80", "HTTPBRIDGE_DASHBOARD_LISTEN": "[::]:81"})
    assert (bridge.clients_url(), bridge.dashboard_url()) == ("http://127.0.0.1:80", "http://[::1]:81")
    with pytest.raises(ConfigurationError, match="HTTPBRIDGE_DASHBOARD_LISTEN"):
        bridge.check_dashboard_exposure()


FILES = [
    (KeyServiceConfig, {"AUTHSVC_TLS_CERT": 0, "AUTHSVC_TLS_KEY": 1, "AUTHSVC_TLS_CLIENT_CA": 0}),
    (KeyServiceConfig, {"AUTHSVC_CA": 0, "AUTHSVC_CLIENT_CERT": 0, "AUTHSVC_CLIENT_KEY": 1}),
    (BridgeConfig, {"HTTPBRIDGE_TLS_CERT": 0, "HTTPBRIDGE_TLS_KEY": 1}),
    (
        BridgeConfig,
        {
            "HTTPBRIDGE_KEY_SERVICE_CA": 0,
            "HTTPBRIDGE_KEY_SERVICE_CERT": 0,
            "HTTPBRIDGE_KEY_SERVICE_CERT_KEY": 1,
        },
    ),
]


@pytest.mark.parametrize(("config", "variables"), FILES)
def test_a_file_that_a_variable_names_is_not_for_everybody_to_write(
    tmp_path: Path, config: Any, variables: dict[str, int]
) -> None:
    """It may be its group's (Kubernetes); a key that everybody can read (Docker Compose) is warned of."""
    paths = {variable: tmp_path / variable for variable in variables}
    environ = {variable: str(path) for variable, path in paths.items()}
    config.from_environment(environ)  # that there is no such file is said where it is read
    for path in paths.values():
        path.touch()
        path.chmod(0o660)
        if os.geteuid() == 0:
            os.chown(path, 54321, 54321)
    assert config.from_environment(environ).keys_readable_by_all() == []
    for variable, path in paths.items():
        path.chmod(0o444)
        readable = [(variable, path)] if variables[variable] else []
        assert config.from_environment(environ).keys_readable_by_all() == readable
        path.chmod(0o602)
        with pytest.raises(ConfigurationError) as caught:
            config.from_environment(environ)
        assert str(caught.value) == f"{variable}: {path}: everybody can write to it: run 'chmod o-w {path}'"
        path.chmod(0o400)
