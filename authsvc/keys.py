"""New API keys; the rules for key ids and project ids. The format of an API key is in `client.api_key`."""

import re
import secrets
from typing import NewType

from authsvc.client.api_key import PREFIX, ApiKey
from authsvc.errors import InvalidArgumentError, NotFoundError

KeyId = NewType("KeyId", str)
ProjectId = NewType("ProjectId", str)

PROJECT_ID_CHARACTERS_MAX = 63

_KEY_ID = re.compile(r"key_[0-9a-f]{16}")
_PROJECT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def generate_api_key() -> ApiKey:
    """Return a new API key with 96 random bits."""
    return ApiKey(PREFIX + secrets.token_hex(12))


def generate_key_id() -> KeyId:
    """Return a new key id, `key_` and 16 hex digits. It is public, and only has to be unique."""
    return KeyId("key_" + secrets.token_hex(8))


def parse_key_id(text: str) -> KeyId:
    """Return the text as a key id; raise NotFoundError when it is not one, and so no key's."""
    if _KEY_ID.fullmatch(text) is None:
        raise NotFoundError(f"no key {text[:40]!r}")
    return KeyId(text)


def parse_project_id(text: str) -> ProjectId:
    """Return the text as a project id; raise InvalidArgumentError when it is not one."""
    if _PROJECT_ID.fullmatch(text) is None:
        shown = text if len(text) <= 80 else text[:80] + "…"
        raise InvalidArgumentError(
            f"project id {shown!r}: expected 1 to 63 of a-z, 0-9 and -, not starting or ending with -"
        )
    return ProjectId(text)
