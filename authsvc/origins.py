"""Origin entries, of which a project lists those it admits: parse, normalise, match. Pure.

The rules are the public contract's:

    example.com               http or https, any port
    example.com:8443          http or https, that port (a default port counts)
    https://example.com       that scheme, its default port
    https://example.com:8443  that scheme and port
    *.example.com             one or more labels under it; also with scheme, port
    capacitor://localhost     any other scheme (apps, browser extensions): exactly that origin

Both sides go through one parser, so that they cannot disagree; what it does not
understand, no entry admits.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import idna

from authsvc.client.verdicts import ORIGIN_CHARACTERS_MAX
from authsvc.errors import InvalidArgumentError
from authsvc.public_suffixes import public_suffix_within

ENTRIES_MAX = 100
ENTRY_CHARACTERS_MAX = 260
_HOST_CHARACTERS_MAX = 253  # RFC 1035 section 2.3.4: 255 octets on the wire
_SHOWN_CHARACTERS_MAX = 80  # of an entry in an error message

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OPAQUE_HOST = re.compile(r"[!-~]+")
"""Of another scheme: browsers change nothing in it, and what else they would not leave in it is refused before."""
_FOREIGN = {
    "@": "user info",
    "/": "a path",
    "\\": "a path",
    "?": "a query",
    "#": "a fragment",
    "%": "a percent sign",
}
_OPAQUE_FORBIDDEN = frozenset("<>[]^|*,")


class OriginEntryError(InvalidArgumentError):
    """A list of origin entries that cannot be stored; the message names the entry and says why."""

    def __init__(self, entry: str, reason: str, public_suffix: str = "") -> None:
        """`entry` is the culprit as given, empty when the fault is the list's; the suffix is why it is refused."""
        shown = entry if len(entry) <= _SHOWN_CHARACTERS_MAX else entry[:_SHOWN_CHARACTERS_MAX] + "…"
        super().__init__(f"origin entry {shown!r}: {reason}" if entry else reason)  # repr escapes what does not print
        self.reason = reason
        self.public_suffix = public_suffix


class _UnparsableError(Exception):
    """Not of the form that is expected; the message says why."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """An origin, or an entry without its wildcard."""

    scheme: str
    """Empty when an entry names none."""
    host: str
    port: int | None
    """As given."""

    @property
    def effective_port(self) -> int | None:
        return self.port if self.port is not None else _DEFAULT_PORTS.get(self.scheme)


class OriginList:
    """The normalised entries of one project. Cheap to build: nothing is parsed until an origin is."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[str]) -> None:
        """`entries` are what `normalise_list` returned."""
        self._entries = frozenset(entries)

    @property
    def admits_all(self) -> bool:
        """Whether every origin is admitted, because there are no entries."""
        return not self._entries

    def admits(self, origin: str | None) -> bool:
        """Whether a request with this `Origin` header, None for one without, is admitted."""
        return origin is None or not self._entries or not self._entries.isdisjoint(_admitting(origin))

    def admitting_entries(self, origin: str) -> frozenset[str]:
        """Return the entries that admit this `Origin` header."""
        return self._entries.intersection(_admitting(origin))


EVERY_ORIGIN = OriginList(())
"""The list that most projects have, and that all of them share."""


def normalise_list(entries: Sequence[str], *, allow_public_suffix: bool = False) -> tuple[str, ...]:
    """Return the entries in the form that is stored and compared, without repeats, in the order given.

    Raises OriginEntryError when there are more than 100, and for one that is malformed, longer than 260 characters or,
    unless that is allowed, a wildcard over a public suffix.
    """
    if len(entries) > ENTRIES_MAX:
        raise OriginEntryError("", f"{len(entries)} origin entries, and {ENTRIES_MAX} is the most")
    return tuple(dict.fromkeys(normalise_entry(entry, allow_public_suffix=allow_public_suffix) for entry in entries))


def admitted_public_suffix(entry: str) -> str:
    """Return the public suffix under which a normalised entry admits everybody's pages; empty for none."""
    host = entry.partition("://")[2] or entry
    if not host.startswith("*."):
        return ""
    return public_suffix_within(host.removeprefix("*.").partition(":")[0]) or ""


def normalise_entry(entry: str, *, allow_public_suffix: bool) -> str:
    """Return one entry in the form that is stored and compared; raise OriginEntryError saying why it cannot be."""
    if len(entry) > ENTRY_CHARACTERS_MAX:
        raise OriginEntryError(entry, f"longer than {ENTRY_CHARACTERS_MAX} characters")
    text = entry.strip()
    if not text:
        raise OriginEntryError("", "an origin entry is empty")
    if text.lower() == "null":  # as a host it would be valid, and never what was meant
        raise OriginEntryError(entry, "Origin: null, which sandboxed and local pages send, cannot be admitted")
    try:
        _check_single(text)
        # One slash at the end is what a browser's address bar adds.
        scheme, rest = _split_scheme(text if text.endswith("//") else text.removesuffix("/"))
        wildcard = rest.startswith("*.") and _is_web(scheme)
        parts = _parse(scheme + (rest.removeprefix("*.") if wildcard else rest))
        if wildcard and _is_ip(parts.host):
            raise _UnparsableError("an IP address has no labels under it")
    except _UnparsableError as error:
        raise OriginEntryError(entry, str(error)) from None
    normalised = _write(parts.scheme, ("*." if wildcard else "") + parts.host, parts.port)
    if not allow_public_suffix and (suffix := admitted_public_suffix(normalised)):
        reason = f"it would admit everybody's pages under {suffix}, a public suffix, and so must be forced"
        raise OriginEntryError(entry, reason, suffix)
    return normalised


def _check_single(text: str) -> None:
    """Raise _UnparsableError for what a list of entries, or another idea of a wildcard, looks like."""
    if text == "*":
        raise _UnparsableError("a wildcard must have labels after it; an empty list is what admits every origin")
    if "," in text or ";" in text:
        raise _UnparsableError("one entry has no commas and semicolons: write several as entries of their own")
    if any(character.isspace() for character in text):
        raise _UnparsableError("white space is not part of an origin: write several as entries of their own")
    host = text.partition("://")[2] or text
    if "*" in host.removeprefix("*."):
        raise _UnparsableError("a wildcard must be the whole first label, with others after it: *.example.com")


def _admitting(origin: str) -> Iterator[str]:
    """Yield every normalised entry that would admit the origin: none for what is not one."""
    if len(origin) > ORIGIN_CHARACTERS_MAX:
        return
    try:
        parts = _parse(origin)
    except _UnparsableError:
        return
    if not parts.scheme:
        return
    if not _is_web(parts.scheme):
        yield _write(parts.scheme, parts.host, parts.port)
        return
    for host in _host_patterns(parts.host):
        yield host
        yield f"{host}:{parts.effective_port}"
        yield _write(parts.scheme, host, parts.port)


def _host_patterns(host: str) -> Iterator[str]:
    yield host
    while parent := host.partition(".")[2]:
        yield "*." + parent  # of an IPv4 address too: there are no such entries
        host = parent


def _write(scheme: str, host: str, port: int | None) -> str:
    shown_port = "" if port is None or port == _DEFAULT_PORTS.get(scheme) else f":{port}"
    return f"{scheme}://{host}{shown_port}" if scheme else host + shown_port


def _split_scheme(text: str) -> tuple[str, str]:
    """Return the scheme with `://`, or nothing, and the rest."""
    if match := _SCHEME.match(text):
        return match[0].lower(), text[match.end() :]
    if "://" in text:
        raise _UnparsableError("a scheme is letters, digits, + . and -, such as https or chrome-extension")
    return "", text


def _is_web(scheme: str) -> bool:
    """Whether the rules of http and https hold; no scheme stands for both."""
    return scheme.removesuffix("://") in ("", *_DEFAULT_PORTS)


def _parse(text: str) -> _Parts:
    """Read `[scheme://]host[:port]`."""
    scheme, authority = _split_scheme(text)
    for character, name in _FOREIGN.items():
        if character in authority:
            raise _UnparsableError(f"{name} is not part of an origin")
    if any(character.isspace() for character in authority):
        raise _UnparsableError("white space is not part of an origin")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match[1]:
        raise _UnparsableError("expected a host, or a host and a port, such as https://example.com:8443")
    port = int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65535:
        raise _UnparsableError("the port must be 1 to 65535")
    host = _host(match[1]) if _is_web(scheme) else _opaque_host(match[1])
    return _Parts(scheme.removesuffix("://"), host, port)


def _opaque_host(text: str) -> str:
    """Return the host of a scheme that browsers know nothing about: it is compared as it is (URL standard, 3.5)."""
    if _OPAQUE_HOST.fullmatch(text) is None or not _OPAQUE_FORBIDDEN.isdisjoint(text):
        if "*" in text:
            raise _UnparsableError("the host has a wildcard, and these are for http and https")
        raise _UnparsableError("the host has characters that no origin has")
    return text


def _host(text: str) -> str:
    """Return the host as browsers write it: A-labels in lower case, no trailing dot, canonical IP addresses.

    Browsers map names by UTS 46, non-transitional (URL standard, section 3.3), so the same is done here.
    """
    if text.startswith("["):
        return f"[{_ipv6(text[1:-1])}]"
    host = text.lower() if text.isascii() else _mapped(text)
    host = host.removesuffix(".")
    if len(host) > _HOST_CHARACTERS_MAX:
        raise _UnparsableError(f"the host is longer than {_HOST_CHARACTERS_MAX} characters")
    labels = host.split(".")
    for label in labels:
        _check_label(label)
    if _NUMBER.fullmatch(labels[-1]):  # the URL standard takes such a host for an IPv4 address, in whatever notation
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise _UnparsableError("an IPv4 address is four decimal numbers, such as 127.0.0.1") from None
    return host


def _mapped(text: str) -> str:
    """Return a host with characters beyond ASCII in A-label form."""
    try:
        labels = idna.uts46_remap(text, std3_rules=False, transitional=False).split(".")
        # Of such a host browsers check the labels that are A-labels already, too; `alabel` does.
        is_plain = [label.isascii() and not label.startswith("xn--") for label in labels]
        return ".".join(
            label if plain else idna.alabel(label).decode() for label, plain in zip(labels, is_plain, strict=True)
        )
    except UnicodeError as error:  # IDNAError is one
        raise _UnparsableError(f"not an internationalised domain name ({error})") from None


def _check_label(label: str) -> None:
    if not label:
        raise _UnparsableError("a label of the host is empty")
    if _LABEL.fullmatch(label) is None:
        raise _UnparsableError("a label of the host is longer than 63 characters, or has others than a-z 0-9 - _")


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise _UnparsableError("not an IPv6 address") from None
    if address.ipv4_mapped is not None:  # whose text form depends on the version of Python; browsers write hexadecimal
        return f"::ffff:{int(address) >> 16 & 0xFFFF:x}:{int(address) & 0xFFFF:x}"
    return address.compressed


def _is_ip(host: str) -> bool:
    return host.startswith("[") or host.rpartition(".")[2].isdecimal()
