"""Origin entries: what is refused, how entries come back, and which origins they admit."""

import pytest

from authsvc.client.verdicts import ORIGIN_CHARACTERS_MAX
from authsvc.origins import ENTRIES_MAX, ENTRY_CHARACTERS_MAX, OriginEntryError, OriginList, normalise_list


def admits(entry: str, origin: str | None) -> bool:
    return OriginList(normalise_list([entry])).admits(origin)


@pytest.mark.parametrize(
    ("entry", "normalised"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        ("example.com.:8443", "example.com:8443"),
        ("example.com:443", "example.com:443"),
        ("example.com:080", "example.com:80"),
        ("https://example.com", "https://example.com"),
        ("HTTPS://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://example.com:443", "http://example.com:443"),
        ("*.example.com", "*.example.com"),
        ("https://*.Example.com.:8443", "https://*.example.com:8443"),
        ("localhost", "localhost"),
        ("localhost:3000", "localhost:3000"),
        ("*.localhost", "*.localhost"),
        ("my_app-.example.com", "my_app-.example.com"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.0.0.1.", "127.0.0.1"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("[::1]", "[::1]"),
        ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("[2001:DB8::0:1]:8443", "[2001:db8::1]:8443"),
        ("[::ffff:1.2.3.4]", "[::ffff:102:304]"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("*.bücher。example", "*.xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("xn--ls8h.example", "xn--ls8h.example"),
        ("https://shop.example/", "https://shop.example"),
        ("shop.example:8443/", "shop.example:8443"),
        (" https://shop.example\n", "https://shop.example"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("capacitor://localhost/", "capacitor://localhost"),
        ("TAURI://localhost", "tauri://localhost"),
        ("moz-extension://0B2c-4d", "moz-extension://0B2c-4d"),
        ("app+x.y-z://host:8080", "app+x.y-z://host:8080"),
        ("*.internal", "*.internal"),
        ("*.shop.vercel.app", "*.shop.vercel.app"),
        ("vercel.app", "vercel.app"),
        ("*.www.ck", "*.www.ck"),
    ],
)
def test_an_entry_comes_back_as_browsers_write_it(entry: str, normalised: str) -> None:
    assert normalise_list([entry]) == (normalised,)
    assert normalise_list([normalised]) == (normalised,)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("*", "an empty list is what admits every origin"),
        ("https://*.shop.*", "wildcard"),
        ("https://*", "wildcard"),
        ("*:8443", "wildcard"),
        ("*.", "expected a host"),
        ("*.*.example.com", "wildcard"),
        ("a.*.example.com", "wildcard"),
        ("example.*", "wildcard"),
        ("*a.example.com", "wildcard"),
        ("*example.com", "wildcard"),
        ("*.127.0.0.1", "IP address"),
        ("*.0.0.1", "IPv4"),
        ("*.[::1]", "IP address"),
        (".example.com", "empty"),
        ("example..com", "empty"),
        ("example.com..", "empty"),
        ("*..example.com", "empty"),
        (".", "empty"),
        ("https://", "expected a host"),
        ("https://:443", "expected a host"),
        (":443", "expected a host"),
        ("https://example.com:", "expected a host"),
        ("example.com:0", "port"),
        ("example.com:65536", "port"),
        ("example.com:99999", "port"),
        ("example.com:443443", "expected a host"),
        ("example.com:-1", "expected a host"),
        ("example.com:８０", "expected a host"),
        ("example.com:1:2", "expected a host"),
        ("https://example.com//", "path"),
        ("https://example.com/a/", "path"),
        ("/", "expected a host"),
        ("example.com/path", "path"),
        ("example.com\\", "path"),
        ("example.com?q", "query"),
        ("example.com#f", "fragment"),
        ("user@example.com", "user info"),
        ("https://user:password@example.com", "user info"),
        ("a.example b.example", "white space is not part of an origin: write several"),
        ("a.example, b.example", "commas"),
        ("a.example;b.example", "commas"),
        ("exam\tple.com", "white space"),
        ("exam ple.com", "white space"),
        ("exam\u3000ple.com", "white space"),
        ("ex%61mple.com", "percent"),
        ("[fe80::1%eth0]", "percent"),
        ("exam\0ple.com", "a label"),
        ("exam／ple.com", "a label"),
        ("exam\u202eple.com", "internationalised"),
        ("\ud800.com", "internationalised"),
        ("💩.example", "internationalised"),
        ("\u00ad.example", "empty"),
        ("file://", "expected a host"),
        ("file:///", "path"),
        ("1app://host", "scheme"),
        ("app_x://host", "scheme"),
        ("capacitor://*.host", "wildcard"),
        ("capacitor://*", "wildcard"),
        ("capacitor://bücher", "characters that no origin has"),
        ("capacitor://a|b", "characters that no origin has"),
        ("capacitor://[::1]", "characters that no origin has"),
        ("capacitor://host/path", "path"),
        ("capacitor://", "expected a host"),
        ("capacitor://us%65r", "percent"),
        ("://example.com", "scheme"),
        ("//example.com", "path"),
        ("null", "null"),
        ("NULL", "null"),
        ("::1", "expected a host"),
        ("[::1", "expected a host"),
        ("[]", "IPv6"),
        ("[::g]", "IPv6"),
        ("[1.2.3.4]", "IPv6"),
        ("0x7f.1", "IPv4"),
        ("127.1", "IPv4"),
        ("2130706433", "IPv4"),
        ("0177.0.0.1", "IPv4"),
        ("256.1.1.1", "IPv4"),
        ("example.1", "IPv4"),
        ("a" * 64 + ".com", "a label"),
        ("a." * 126 + "ab", "253"),
        ("a" * (ENTRY_CHARACTERS_MAX + 1), "260"),
    ],
)
def test_a_bad_entry_is_refused_with_a_message_that_names_it(entry: str, reason: str) -> None:
    with pytest.raises(OriginEntryError) as caught:
        normalise_list(["example.com", entry])
    assert repr(entry[:80])[1:-1] in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("entry", ["", " ", "\n"])
def test_an_empty_entry_is_refused(entry: str) -> None:
    with pytest.raises(OriginEntryError, match="empty"):
        normalise_list([entry])


SUFFIXES = [
    ("*.com", "com"),
    ("https://*.vercel.app:8443", "vercel.app"),
    ("*.Vercel.App.", "vercel.app"),
    ("*.github.io", "github.io"),
    ("*.co.uk", "co.uk"),
    ("*.foo.ck", "foo.ck"),
    ("*.ck", "ck"),
    ("*.香港", "香港"),
    ("*.xn--j6w193g", "香港"),
    ("*.amazonaws.com", ".amazonaws.com"),  # not one itself, but s3.amazonaws.com and others under it are
]


@pytest.mark.parametrize(("entry", "suffix"), SUFFIXES)
def test_a_wildcard_over_a_public_suffix_is_refused_unless_forced(entry: str, suffix: str) -> None:
    with pytest.raises(OriginEntryError, match="everybody's pages under") as caught:
        normalise_list(["shop.example", entry])
    assert f"{suffix}, a public suffix" in str(caught.value)
    assert len(normalise_list(["shop.example", entry], allow_public_suffix=True)) == 2


@pytest.mark.parametrize("entry", ["a\r\nb", "a\x1b[2Jb", "x" * 100_000, "\u202e" * 1000, "%" * 260])
def test_a_refusal_is_one_short_printable_line(entry: str) -> None:
    with pytest.raises(OriginEntryError) as caught:
        normalise_list([entry])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_entry_may_have_260_characters_and_a_host_253() -> None:
    host = "a." * 123 + "example"
    assert len(host) == 253
    assert normalise_list([host]) == (host,)
    entry = f"http://{host[2:]}:1"
    assert len(entry) == ENTRY_CHARACTERS_MAX
    assert normalise_list([entry]) == (entry,)
    assert OriginList([entry]).admits(entry)


def test_a_list_has_at_most_100_entries() -> None:
    entries = [f"a{number}.example" for number in range(ENTRIES_MAX)]
    assert normalise_list(entries) == tuple(entries)
    with pytest.raises(OriginEntryError, match="100"):
        normalise_list([*entries, "b.example"])


def test_repeats_leave_and_the_order_stays() -> None:
    assert normalise_list(["b.example", "a.example", "B.EXAMPLE.", "https://a.example:443", "https://a.example"]) == (
        "b.example",
        "a.example",
        "https://a.example",
    )


@pytest.mark.parametrize("origin", [None, "https://example.com", "null", "", "no origin at all", "x" * 10_000])
def test_an_empty_list_admits_everything(origin: str | None) -> None:
    assert OriginList(()).admits(origin)


@pytest.mark.parametrize("entry", ["example.com", "https://*.example.com:8443", "[::1]"])
def test_a_request_without_an_origin_is_always_admitted(entry: str) -> None:
    assert admits(entry, None)


@pytest.mark.parametrize(
    ("entry", "origins"),
    [
        (
            "example.com",
            ["http://example.com", "https://example.com", "https://example.com:8443", "http://example.com:1"],
        ),
        ("example.com", ["HTTPS://EXAMPLE.COM", "https://example.com.", "https://example.com.:8443"]),
        ("example.com:8443", ["http://example.com:8443", "https://example.com:8443"]),
        ("example.com:443", ["https://example.com", "https://example.com:443", "http://example.com:443"]),
        ("example.com:80", ["http://example.com", "http://example.com:80", "https://example.com:80"]),
        ("https://example.com", ["https://example.com", "https://example.com:443"]),
        ("http://example.com", ["http://example.com", "http://example.com:80"]),
        ("https://example.com:443", ["https://example.com", "https://example.com:443"]),
        ("https://example.com:8443", ["https://example.com:8443"]),
        ("*.example.com", ["https://a.example.com", "http://a.b.c.example.com:8443", "https://A.Example.Com."]),
        ("*.example.com:8443", ["https://a.example.com:8443", "http://a.b.example.com:8443"]),
        ("https://*.example.com", ["https://a.example.com", "https://a.b.example.com:443"]),
        ("https://*.example.com:8443", ["https://a.example.com:8443"]),
        ("bücher.example", ["https://xn--bcher-kva.example", "https://bücher.example", "https://BÜCHER.example"]),
        ("xn--bcher-kva.example", ["https://bücher.example"]),
        ("*.bücher.example", ["https://a.xn--bcher-kva.example"]),
        ("xn--ls8h.example", ["https://xn--ls8h.example"]),
        ("localhost:3000", ["http://localhost:3000", "http://LOCALHOST:3000"]),
        ("capacitor://localhost", ["capacitor://localhost", "Capacitor://localhost"]),
        ("moz-extension://0b2c-4d", ["moz-extension://0b2c-4d"]),
        ("127.0.0.1", ["http://127.0.0.1:5173", "https://127.0.0.1"]),
        ("[::1]:3000", ["http://[::1]:3000", "http://[0:0::1]:3000"]),
        ("[2001:DB8::1]", ["https://[2001:db8::1]", "https://[2001:db8:0:0::1]:8443"]),
    ],
)
def test_an_entry_admits(entry: str, origins: list[str]) -> None:
    assert [origin for origin in origins if not admits(entry, origin)] == []


@pytest.mark.parametrize(
    ("entry", "origins"),
    [
        ("example.com:8443", ["https://example.com", "https://example.com:8444", "https://example.com:84430"]),
        ("example.com:443", ["http://example.com", "https://example.com:80"]),
        ("https://example.com", ["http://example.com", "http://example.com:443", "https://example.com:8443"]),
        ("https://example.com:8443", ["https://example.com", "http://example.com:8443"]),
        (
            "*.example.com",
            ["https://example.com", "https://.example.com", "https://*.example.com", "https://aexample.com"],
        ),
        ("https://*.example.com", ["http://a.example.com", "https://a.example.com:8443"]),
        (
            "127.0.0.1",
            ["http://127.1", "http://2130706433", "http://0x7f000001", "http://0177.0.0.1", "http://127.0.0.2"],
        ),
        (
            "capacitor://localhost",
            ["capacitor://LOCALHOST", "http://localhost", "capacitor://localhost:80", "tauri://localhost"],
        ),
        ("localhost", ["capacitor://localhost", "tauri://localhost"]),
        ("[::1]", ["http://::1", "http://[::2]", "http://[::1%25lo]", "http://[::1]x", "http://1"]),
    ],
)
def test_an_entry_does_not_admit(entry: str, origins: list[str]) -> None:
    assert [origin for origin in origins if admits(entry, origin)] == []


BYPASSES = [
    "null",
    "NULL",
    "",
    " ",
    "*",
    "example.com",
    "//example.com",
    "https:example.com",
    "https:/example.com",
    "https:///example.com",
    "https:\\\\example.com",
    "https//example.com",
    "://example.com",
    "file://",
    "file://example.com",
    "ftp://example.com",
    "ws://example.com",
    "httpss://example.com",
    "data:https://example.com",
    "javascript://example.com",
    "chrome-extension://example.com",
    "https://evilexample.com",
    "https://example.com.evil.com",
    "https://example.comevil.com",
    "https://examplescom",
    "https://example-com",
    "https://example.co",
    "https://xample.com",
    "https://evil.com/example.com",
    "https://evil.com?example.com",
    "https://evil.com#example.com",
    "https://evil.com\\.example.com",
    "https://evil.com@example.com",
    "https://example.com@evil.com",
    "https://example.com:443@evil.com",
    "https://@example.com",
    "https://:@example.com",
    "https://evil.com:example.com",
    "https://example.com/",
    "https://example.com/path",
    "https://example.com?",
    "https://example.com#",
    "https://example.com\\",
    "https://example.com:",
    "https://example.com:0",
    "https://example.com:65536",
    "https://example.com:0x50",
    "https://example.com:4 43",
    "https://example.com:+443",
    "https://example.com:443:443",
    "https://example.com:٤٤٣",
    "https://example.com..",
    "https://.example.com",
    "https://example..com",
    "https://example.com, https://evil.com",
    "https://evil.com https://example.com",
    "https://example.com https://evil.com",
    " https://example.com",
    "https://example.com ",
    "https://example.com\n",
    "https://example.com\r\nX: y",
    "https://exa\tmple.com",
    "https://exa\nmple.com",
    "\thttps://example.com",
    "https://example.com\0",
    "https://example.com\0.evil.com",
    "https://example.com%00.evil.com",
    "https://example%2ecom",
    "https://ex%61mple.com",
    "https://example.com%2f.evil.com",
    "https://evil.com%2f.example.com",
    "https://exаmple.com",  # a Cyrillic letter
    "https://xn--exmple-4nf.com",
    "https://examplé.com",
    "https://evil.com／.example.com",
    "https://evil.com＃.example.com",
    "https://evil.com＠example.com",
    "https://evil!.example.com",
    "https://evil`.example.com",
    "https://evil;.example.com",
    "https://evil,.example.com",
    "https://evil'.example.com",
    "https://(evil).example.com",
    "https://{evil}.example.com",
    "https://evil|.example.com",
    "https://evil^.example.com",
    "https://<evil>.example.com",
    "https://*.example.com",
    "https://[example.com]",
    "https://[::ffff:example.com]",
    "https://\ud800.example.com",
    "https://" + "a" * 64 + ".example.com",
    "https://" + "a." * 121 + "a.example.com",
    "https://" + "a." * 10_000 + "example.com",
    "https://" + "\u00ad" * ORIGIN_CHARACTERS_MAX + "a.example.com",
]


@pytest.mark.parametrize("origin", BYPASSES)
def test_known_ways_around_an_origin_list_are_refused(origin: str) -> None:
    origins = OriginList(normalise_list(["example.com", "*.example.com", "https://example.com", "example.com:443"]))
    assert not origins.admits(origin)
