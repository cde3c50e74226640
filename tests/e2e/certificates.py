"""Certificates as files, made anew for each test run: nothing that expires lies in the repo."""

import ssl
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that writes what it signs into a directory."""

    directory: Path
    name: str
    _authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def ca(self) -> str:
        """The path of its own certificate."""
        path = self.directory / f"{self.name}-ca.pem"
        self._authority.cert_pem.write_to_path(path)
        return str(path)

    def certificate(self, *names: str, not_after: datetime | None = None) -> tuple[str, str]:
        """Sign for these hosts or addresses; return the paths of the certificate and of its key."""
        leaf = self._authority.issue_cert(*names, not_after=not_after)
        stem = f"{self.name}-{names[0]}{'-until' if not_after else ''}"
        certificate, key = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        key.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(key)
        return str(certificate), str(key)

    def client_context(self) -> ssl.SSLContext:
        """Return the settings of a client that trusts this authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context
