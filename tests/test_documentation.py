"""What the documents say is what the code does."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authsvc.config import Config as KeyServiceConfig
from httpbridge.config import Config as BridgeConfig

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \| (.+?) \| .+ \|$", re.MULTILINE)


@pytest.mark.parametrize(("struct", "prefix"), [(KeyServiceConfig, "AUTHSVC_"), (BridgeConfig, "HTTPBRIDGE_")])
def test_every_variable_is_documented_with_its_default_and_no_other_is(struct: Any, prefix: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = {name: default for name, _, default in ROW.findall(text) if name.startswith(prefix)}
    fields = {prefix + field.name.upper(): field.default for field in msgspec.structs.fields(struct)}
    assert documented.keys() == fields.keys()
    for name, default in fields.items():
        shown = documented[name].strip("`")
        if default is None:
            assert shown.startswith(("none", "generated", "read from", "sqlite:///STATE_DIR/", "AUTHSVC_LISTEN")), name
        else:
            assert shown == (str(default).lower() if isinstance(default, bool) else str(default)), name


def test_every_link_between_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
