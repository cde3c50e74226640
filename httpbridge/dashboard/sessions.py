"""Who is signed in: sessions, sign-in links and CSRF tokens, all signed with a key derived from the dashboard token.

Nothing is stored but which sessions were signed out and which links used, so a changed token ends every session, link
and form. The command line makes links, too.
"""

import hashlib
import hmac
import os
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
from itsdangerous import BadData, URLSafeSerializer

from authsvc.runtime.environment import ConfigurationError, Secret
from httpbridge.text import single_spaced

SESSION_SECONDS = 12 * 3600
IDLE_SECONDS = 3600
"""Without a request but those of live tails, which pages make by themselves."""
REFRESH_SECONDS = 60
"""How exactly the last request is known."""
LINK_SECONDS = 600
NOTICE_SECONDS = 60
NAME_CHARACTERS_MAX = 64
_TEXT_CHARACTERS_MAX = 4096

SPENT_MAX = 10_000
"""Sessions that were signed out, and links that were used; of more, those that end first are forgotten first."""

_log = structlog.get_logger("httpbridge.dashboard")


@dataclass(frozen=True, slots=True)
class Session:
    """A person who has signed in."""

    session_id: str
    name: str
    expires_at: int
    """Unix seconds."""
    seen_at: int
    """Likewise: when its cookie was made."""


@dataclass(frozen=True, slots=True)
class SignInLink:
    """What a link says."""

    link_id: str
    name: str
    expires_at: int
    """Unix seconds."""


class Spent:
    """What is worth nothing any more before its time: those of one kind, by id and end (Unix seconds).

    One empty file each, `DIRECTORY/UNTIL-ID`, made in one step, so that a restart changes nothing and dashboards which
    share the directory know each other's at once. Files of what would be over anyway are removed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unstored: deque[str] = deque(maxlen=SPENT_MAX)
        """What the directory did not take; known to this process alone."""

    def add(self, id_: str, until: int, now: int) -> bool:
        """Keep one in mind, durably; return whether it was not known. Of several who ask at once, one is told so.

        Raises OSError when the directory does not take it.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._directory / _spent_name(id_, until)).touch(mode=0o600, exist_ok=False)
            self._forget(now)
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileExistsError:
            if not self._directory.is_dir():
                raise
            return False
        return True

    def add_anyway(self, id_: str, until: int, now: int) -> None:
        """Keep one in mind; where the directory does not take it, until this process ends, and the log says so."""
        try:
            self.add(id_, until, now)
        except OSError as error:
            self._unstored.append(_spent_name(id_, until))
            _log.error("sign_out_not_stored", directory=str(self._directory), reason=error.strerror)

    def has(self, id_: str, until: int) -> bool:
        """Whether it is one of them. Raises ConfigurationError when the directory cannot be looked into."""
        name = _spent_name(id_, until)
        try:
            return name in self._unstored or (self._directory / name).exists()
        except OSError as error:
            raise ConfigurationError(f"HTTPBRIDGE_STATE_DIR: {self._directory}: {error.strerror}") from None

    def _forget(self, now: int) -> None:
        names = sorted(path.name for path in self._directory.iterdir())
        too_many = len(names) - SPENT_MAX
        for number, name in enumerate(names):
            if number < too_many or name < _spent_name("", now):
                (self._directory / name).unlink(missing_ok=True)


def _spent_name(id_: str, until: int) -> str:
    return f"{until:012}-{id_}"


class Sessions:
    """Makes and reads what is signed. The token is read at each use, so it may change at any time."""

    def __init__(
        self, token: Callable[[], Secret], signed_out: Spent, used_links: Spent, now: Callable[[], datetime]
    ) -> None:
        self._token = token
        self._signed_out = signed_out
        self._used_links = used_links
        self._now = now

    def is_token(self, presented: str) -> bool:
        return hmac.compare_digest(presented.strip().encode(errors="replace"), self._token().reveal().encode())

    def begin(self, name: str) -> str:
        """Return the cookie of a new session."""
        return self._cookie(secrets.token_hex(16), name, self._unix() + SESSION_SECONDS)

    def read(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; None when it is over, idle, signed out, or was never one."""
        fields = self._read("session", cookie)
        if fields is None or self._signed_out.has(fields["id"], fields["until"]):
            return None
        session = Session(fields["id"], fields["name"], fields["until"], fields.get("seen", 0))
        return session if session.seen_at + IDLE_SECONDS > self._unix() else None

    def refreshed(self, session: Session) -> str | None:
        """Return the session's cookie as of now; None while the one that was read is as good."""
        if self._unix() < session.seen_at + REFRESH_SECONDS:
            return None
        return self._cookie(session.session_id, session.name, session.expires_at)

    def end(self, session: Session) -> None:
        """Sign out: the session's cookie is worth nothing from now on, wherever it was copied to.

        A restart of the dashboard does not bring it back.
        """
        self._signed_out.add_anyway(session.session_id, session.expires_at, self._unix())

    def link(self, name: str) -> str:
        """Return what signs this person in once, within LINK_SECONDS, for a URL.

        Raises ValueError as `parse_name` does.
        """
        until = self._unix() + LINK_SECONDS
        return self._sign("link", until, id=secrets.token_hex(16), name=parse_name(name))

    def read_link(self, text: str | None) -> SignInLink | None:
        """Return what a link says, used or not; None when it is too old, or was never one."""
        fields = self._read("link", text)
        return SignInLink(fields["id"], fields["name"], fields["until"]) if fields and "id" in fields else None

    def is_used(self, link: SignInLink) -> bool:
        return self._used_links.has(link.link_id, link.expires_at)

    def use(self, link: SignInLink) -> bool:
        """Use a link up, durably; return whether it was not used before.

        Raises OSError when that cannot be kept in mind: then it is not to sign in.
        """
        return self._used_links.add(link.link_id, link.expires_at, self._unix())

    def notice(self, text: str) -> str:
        """Return the cookie of a notice for the next page."""
        return self._sign("notice", self._unix() + NOTICE_SECONDS, text=text)

    def read_notice(self, cookie: str | None) -> str:
        fields = self._read("notice", cookie)
        return "" if fields is None else str(fields["text"])

    def csrf_token(self, subject: str) -> str:
        """Return what forms carry on pages that are shown to a session or pre-session."""
        return hmac.new(_key(self._token().reveal()), b"form " + subject.encode(), hashlib.sha256).hexdigest()

    def is_csrf_token(self, subject: str, presented: str) -> bool:
        return hmac.compare_digest(self.csrf_token(subject).encode(), presented.encode(errors="replace"))

    def _cookie(self, session_id: str, name: str, until: int) -> str:
        return self._sign("session", until, id=session_id, name=name, seen=self._unix())

    def _sign(self, purpose: str, until: int, **fields: Any) -> str:
        return self._serializer(purpose).dumps(fields | {"until": until})

    def _read(self, purpose: str, text: str | None) -> dict[str, Any] | None:
        if not text or len(text) > _TEXT_CHARACTERS_MAX or not text.isascii():
            return None
        try:
            fields: dict[str, Any] = self._serializer(purpose).loads(text)
        except BadData:
            return None
        return fields if fields["until"] > self._unix() else None

    def _serializer(self, purpose: str) -> URLSafeSerializer:
        return URLSafeSerializer(
            _key(self._token().reveal()),
            salt=f"deeptracer dashboard {purpose}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def _unix(self) -> int:
        return int(self._now().timestamp())


def parse_name(text: str) -> str:
    """Read a person's name, white space made one; raise ValueError, with a text for the person."""
    name = single_spaced(text)
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise ValueError(f"A name is needed, at most {NAME_CHARACTERS_MAX} characters, all of which can be seen.")
    return name


@lru_cache(maxsize=4)
def _key(token: str) -> bytes:
    """Derive the signing key slowly (50 ms), so that a cookie is no quick way to guess a token that people chose."""
    return hashlib.scrypt(token.encode(), salt=b"deeptracer dashboard", n=2**14, r=8, p=1, dklen=32)
