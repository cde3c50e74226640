"""Addresses, networks, and the places that one address may take."""

import pytest

from authsvc.runtime.networks import Networks, Places, address_group, client_address, forwarded_for

NOBODY = Networks()


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:", "unix:"),
        ("", ""),
    ],
)
def test_one_caller_is_an_ipv4_address_or_a_64_of_ipv6(text: str, group: str) -> None:
    assert address_group(text) == group


@pytest.mark.parametrize(
    ("networks", "address", "is_in"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8, 2001:db8::/32", "2001:db8::5", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("10.0.0.1/8", "10.9.9.9", True),
        ("10.0.0.0/8", "not an address", False),
        ("", "10.0.0.1", False),
    ],
)
def test_networks_contain_addresses(networks: str, address: str, is_in: bool) -> None:
    assert (address in Networks.parse(networks)) is is_in


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.0/33", "10.0.0", "::/129", "10.0.0.0/8;::1"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="not '"):
        Networks.parse(text)


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),  # a stranger says what it likes
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),  # the client itself sent the first
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_says_for_whom_it_speaks(peer: str, forwarded_for: list[str], expected: str) -> None:
    assert client_address(peer, forwarded_for, Networks.parse("10.0.0.0/8")) == expected


@pytest.mark.parametrize(
    ("x_forwarded_for", "forwarded", "expected"),
    [
        ([], [], [""]),
        (["198.51.100.1, 10.0.0.1", "10.0.0.2"], [], ["198.51.100.1", "10.0.0.1", "10.0.0.2"]),
        (
            ["198.51.100.1:4711,[2001:db8::1]:4711, 2001:db8::2%a"],
            [],
            ["198.51.100.1", "2001:db8::1", "2001:db8::2"],
        ),
        ([], ['for=198.51.100.1;proto=https, By=10.0.0.1; For="[2001:db8::1]:4711"'], ["198.51.100.1", "2001:db8::1"]),
        ([], ["proto=https", "for=unknown"], ["", "unknown"]),
        (["198.51.100.1"], ["for=203.0.113.9"], ["198.51.100.1"]),
    ],
)
def test_both_headers_list_addresses(x_forwarded_for: list[str], forwarded: list[str], expected: list[str]) -> None:
    assert forwarded_for(x_forwarded_for, forwarded) == expected


def test_an_address_is_bounded_once_three_quarters_of_the_places_are_taken() -> None:
    places = Places(64, NOBODY)
    assert sum(places.take("192.0.2.1") for _ in range(100)) == 48
    assert sum(places.take("192.0.2.2") for _ in range(100)) == 4
    assert sum(places.take("2001:db8::1") for _ in range(100)) == 4
    assert not places.take("2001:db8::2")  # of the same /64
    assert places.taken == 56


def test_places_that_are_given_back_can_be_taken_again() -> None:
    places = Places(4, NOBODY)
    assert [places.take("192.0.2.1") for _ in range(4)] == [True, True, True, False]
    places.release("192.0.2.1")
    assert places.take("192.0.2.1")
    assert places.count("192.0.2.1") == 3
    for _ in range(3):
        places.release("192.0.2.1")
    assert (places.taken, places.count("192.0.2.1")) == (0, 0)


def test_a_trusted_proxy_is_bounded_by_the_places_alone() -> None:
    places = Places(16, Networks.parse("10.0.0.0/8"))
    assert sum(places.take("10.0.0.1") for _ in range(100)) == 16
    assert not places.take("192.0.2.1")
