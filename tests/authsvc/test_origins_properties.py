"""Origin entries against an independent parser of the URL standard, ada.

The contract takes a strict subset of what a URL parser takes: where it parses,
both must see the same origin, and the table of entries is evaluated here on
ada's parts alone.
"""

import re
from dataclasses import dataclass

from ada_url import URL
from hypothesis import assume, example, given
from hypothesis import strategies as st

from authsvc.origins import OriginEntryError, OriginList, normalise_list

DEFAULT_PORTS = {"http": 80, "https": 443}
STRICT = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE)


@dataclass(frozen=True)
class Seen:
    """An origin as ada sees it."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True)
class Entry:
    """An entry as its author thinks of it."""

    scheme: str
    wildcard: bool
    host: str
    port: int | None

    def __str__(self) -> str:
        scheme = f"{self.scheme}://" if self.scheme else ""
        port = "" if self.port is None else f":{self.port}"
        return f"{scheme}{'*.' if self.wildcard else ''}{self.host}{port}"


def seen_by_ada(text: str) -> Seen | None:
    """Return the parts of a URL with the contract's own rules applied: one trailing dot, and no port 0."""
    try:
        url = URL(text)
    except ValueError:
        return None
    scheme = url.protocol.removesuffix(":")
    host = url.hostname.removesuffix(".")
    port = int(url.port) if url.port else DEFAULT_PORTS[scheme]
    labels = host.split(".")
    if port == 0 or len(host) > 253 or not all(1 <= len(label) <= 63 for label in labels):
        return None
    return Seen(scheme, host, port)


def admitted_by_the_table(entry: Entry, seen: Seen) -> bool:
    """Evaluate the contract's table."""
    base = seen_by_ada(f"http://{entry.host}")
    if base is None:
        return False
    host_fits = seen.host.endswith("." + base.host) if entry.wildcard else seen.host == base.host
    scheme_fits = entry.scheme in ("", seen.scheme)
    if entry.port is not None:
        return host_fits and scheme_fits and seen.port == entry.port
    return host_fits and scheme_fits and (not entry.scheme or seen.port == DEFAULT_PORTS[entry.scheme])


labels = st.one_of(
    st.sampled_from(
        [
            "a",
            "b",
            "example",
            "evil",
            "com",
            "co",
            "localhost",
            "xn--bcher-kva",
            "EXAMPLE",
            "bücher",
            "Faß",
            "xn--a",
            "0x1",
        ]
    ),
    st.from_regex(r"[a-zA-Z0-9_-]{1,8}", fullmatch=True),
)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.one_of(
    st.ip_addresses(v=6).map(lambda address: f"[{address.compressed}]"),
    st.ip_addresses(v=6).map(lambda address: f"[{address.exploded.upper()}]"),
    st.ip_addresses(v=4).map(lambda address: f"[::ffff:{address}]"),
    st.from_regex(r"\[[0-9a-f:.]{2,12}\]", fullmatch=True),
)
hosts = st.one_of(names, names, names, names.map("{}.".format), ipv4, ipv6)
ports = st.sampled_from([None, 80, 443, 8443])
schemes = st.sampled_from(["http", "https"])
entries = st.builds(
    Entry, scheme=st.sampled_from(["", "http", "https"]), wildcard=st.booleans(), host=hosts, port=ports
)


@st.composite
def related(draw: st.DrawFn) -> tuple[Entry, str]:
    """Draw an entry, and an origin that is often one of its own or close to it."""
    entry = draw(entries)
    host = draw(st.one_of(st.just(entry.host), st.just(entry.host.swapcase()), hosts))
    prefix = draw(st.sampled_from(["", "", "a.", "a.b.", "evil", "."]))
    suffix = draw(st.sampled_from(["", "", "", ".", ".evil", "evil"]))
    port = draw(ports)
    return entry, f"{draw(schemes)}://{prefix}{host}{suffix}" + ("" if port is None else f":{port}")


@given(related())
@example((Entry(scheme="", wildcard=True, host="00.b.xn--a", port=None), "http://bücher.00.b.xn--a"))
def test_entries_admit_what_the_table_says(pair: tuple[Entry, str]) -> None:
    entry, origin = pair
    try:
        normalised = normalise_list([str(entry)])
    except OriginEntryError:
        assume(False)
        raise
    seen = seen_by_ada(origin)
    expected = seen is not None and admitted_by_the_table(entry, seen)
    assert OriginList(normalised).admits(origin) == expected


@given(hosts, schemes, st.integers(0, 70_000))
@example("a..b", "https", 443)
@example("xn--a", "https", 443)
@example("1.2.3.4.", "https", 0)
def test_an_origin_of_the_strict_form_is_admitted_by_itself_if_ada_parses_it(host: str, scheme: str, port: int) -> None:
    origin = f"{scheme}://{host}:{port}"
    assume(STRICT.fullmatch(origin))
    seen = seen_by_ada(origin)
    if seen is None:
        for entry in (host, f"{host}:{port}", origin):
            try:
                assert not OriginList(normalise_list([entry])).admits(origin)
            except OriginEntryError:
                continue
    else:
        for entry in (host, f"{host}:{port}", origin):
            assert is_legacy_ipv4(host) or OriginList(normalise_list([entry])).admits(origin)


def is_legacy_ipv4(host: str) -> bool:
    """Whether ada reads an IPv4 address that is not written as four decimal numbers: these are refused here."""
    seen = seen_by_ada(f"http://{host}")
    return (
        seen is not None and seen.host != host.removesuffix(".") and seen.host[-1].isdigit() and "xn--" not in seen.host
    )


@given(st.text(max_size=40) | st.from_regex(r"https?://[^\n]{0,30}", fullmatch=True))
@example("https://exam\tple.com")
@example("https:\\\\example.com")
@example("https://example.com:0")
def test_whatever_is_admitted_is_what_a_browser_would_see(text: str) -> None:
    """No string is taken for another host, scheme or port than a URL parser takes it for."""
    seen = seen_by_ada(text) if text.startswith(("http:", "https:")) else None
    if seen is None:
        assert not OriginList(["example.com"]).admits(text)
        return
    try:
        entry = normalise_list([text])[0]
    except OriginEntryError:
        return
    own = f"{seen.scheme}://{seen.host}" + ("" if seen.port == DEFAULT_PORTS[seen.scheme] else f":{seen.port}")
    assert entry == own


@given(st.lists(entries, max_size=5))
def test_normalising_is_idempotent(given_entries: list[Entry]) -> None:
    try:
        once = normalise_list([str(entry) for entry in given_entries])
    except OriginEntryError:
        assume(False)
        raise
    assert normalise_list(once) == once


@given(st.text(max_size=300))
def test_any_text_is_normalised_or_refused(text: str) -> None:
    try:
        (entry,) = normalise_list([text])
    except OriginEntryError:
        return
    assert re.fullmatch(r"[a-z0-9_.:/*\[\]-]+", entry)
