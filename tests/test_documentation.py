"""What the documents say is what the code does."""

import re
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from authsvc.config import Config as KeyServiceConfig
from authsvc.runtime.environment import Address, ListenAddress, Secret, Token
from authsvc.runtime.networks import Networks
from httpbridge.config import Config as BridgeConfig

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \| (.+?) \| .+ \|$", re.MULTILINE)


SERVICES = pytest.mark.parametrize(
    ("struct", "prefix"), [(KeyServiceConfig, "AUTHSVC_"), (BridgeConfig, "HTTPBRIDGE_")]
)


def rows(prefix: str) -> list[tuple[str, str, str]]:
    """Return name, type and default of the service's variables, as docs/configuration.md has them."""
    found = ROW.findall((ROOT / "docs" / "configuration.md").read_text())
    return [row for row in found if row[0].startswith(prefix)]


@SERVICES
def test_every_variable_is_documented_with_its_default_and_no_other_is(struct: Any, prefix: str) -> None:
    documented = {name: default for name, _, default in rows(prefix)}
    fields = {prefix + field.name.upper(): field.default for field in msgspec.structs.fields(struct)}
    assert documented.keys() == fields.keys()
    for name, default in fields.items():
        shown = documented[name].strip("`")
        if default is None or default == Networks():
            assert shown.startswith(("none", "generated", "read from", "sqlite:///STATE_DIR/", "AUTHSVC_LISTEN")), name
        else:
            assert shown == (str(default).lower() if isinstance(default, bool) else str(default)), name


@SERVICES
def test_every_variable_is_documented_with_its_type(struct: Any, prefix: str) -> None:
    expected = {prefix + field.name.upper(): words(field.type) for field in msgspec.structs.fields(struct)}
    for name, shown, _ in rows(prefix):
        assert shown in expected[name], name


def words(hint: Any) -> set[str]:
    """Return how the documents may call a type, with its limits."""
    if NoneType in get_args(hint):
        (hint,) = set(get_args(hint)) - {NoneType}
    if get_origin(hint) is Annotated:
        kind, limits = get_args(hint)
        bounds = f" ≥ {limits.ge}" if limits.le is None else f", {limits.ge} to {limits.le}"
        return {unit + bounds for unit in ({"seconds"} if kind is float else {"integer", "bytes"})}
    if issubclass(hint, Enum):
        return {", ".join(f"`{member.value}`" for member in hint)}
    return {
        bool: {"switch"},
        Path: {"path"},
        Address: {"address"},
        ListenAddress: {"address"},
        Token: {"secret"},
        Secret: {"URL", "secret"},
        str: {"URL"},
        Networks: {"networks"},
    }[hint]


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
