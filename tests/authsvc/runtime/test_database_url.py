"""What a database's URL means, as libpq reads it, and what is refused of it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.runtime.database_url import PostgresAddress, SetupError, parse_database_url, sqlite_url

SECRET = "canary"


def address(url: str) -> PostgresAddress:
    parsed = parse_database_url(url)
    assert isinstance(parsed, PostgresAddress)
    return parsed


def fields(url: str) -> dict[str, Any]:
    """Return what the URL says, without what it leaves out."""
    parsed = address(url)
    found = {name: getattr(parsed, name) for name in PostgresAddress.__slots__}
    if parsed.password is not None:
        found["password"] = parsed.password.reveal()
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("", {}),
        ("/", {}),
        ("db.internal", {"hosts": (("db.internal", None),)}),
        ("db:5433/keys", {"hosts": (("db", 5433),), "database": "keys"}),
        (":5433", {"hosts": (("", 5433),)}),
        ("ann@/keys", {"user": "ann", "database": "keys"}),
        ("ann:p%40%2F%3a%25%23%3F@db", {"hosts": (("db", None),), "user": "ann", "password": "p@/:%#?"}),
        ("ann:a+b:c#d?e@db", {"hosts": (("db", None),), "user": "ann", "password": "a+b:c#d?e"}),
        ("%C3%A4nn@db/%E2%82%AC", {"hosts": (("db", None),), "user": "änn", "database": "€"}),
        ("[::1]", {"hosts": (("::1", None),)}),
        ("[2001:db8::1]:5433,db,other:1/keys", {"hosts": (("2001:db8::1", 5433), ("db", None), ("other", 1)),
                                                "database": "keys"}),
        ("a,b:7/keys", {"hosts": (("a", None), ("b", 7)), "database": "keys"}),
        ("/keys?host=a,::1&port=1,2", {"hosts": (("a", 1), ("::1", 2)), "database": "keys"}),
        ("/keys?host=a,b&port=6432", {"hosts": (("a", 6432), ("b", 6432)), "database": "keys"}),
        ("first/keys?host=second", {"hosts": (("second", None),), "database": "keys"}),
        ("/keys?host=/var/run/postgresql", {"hosts": (("/var/run/postgresql", None),), "database": "keys"}),
        ("%2Fvar%2Frun%2Fpostgresql/keys", {"hosts": (("/var/run/postgresql", None),), "database": "keys"}),
        ("?user=ann&password=a+b%20c&dbname=keys", {"user": "ann", "password": "a+b c", "database": "keys"}),
        ("?passfile=/run/pass&options=-c%20geqo%3Doff", {"passfile": Path("/run/pass"), "options": "-c geqo=off"}),
        ("?connect_timeout=3&target_session_attrs=read-write", {"connect_seconds": 3,
                                                                "target_session_attrs": "read-write"}),
        ("?application_name=a&fallback_application_name=b", {"application_name": "a"}),
        ("?fallback_application_name=b", {"application_name": "b"}),
        ("?sslmode=verify-ca&sslrootcert=/a&sslcert=/b&sslkey=/c&sslpassword=d&sslcrl=/e",
         {"tls": {"sslmode": "verify-ca", "sslrootcert": "/a", "sslcert": "/b", "sslkey": "/c", "sslpassword": "d",
                  "sslcrl": "/e"}}),
        ("?sslmode=require&sslnegotiation=direct&ssl_min_protocol_version=TLSv1.3",
         {"tls": {"sslmode": "require", "sslnegotiation": "direct", "ssl_min_protocol_version": "TLSv1.3"}}),
        ("?ssl=true", {"tls": {"sslmode": "require"}}),
        ("?sslrootcert=system", {"tls": {"sslrootcert": "system", "sslmode": "verify-full"}}),
        ("?channel_binding=prefer&gssencmode=disable&keepalives=0&client_encoding=UTF8", {}),
        ("?sslmode=&user=", {}),
    ],
)  # fmt: skip
def test_a_url_means_what_it_means_to_libpq(scheme: str, rest: str, expected: dict[str, Any]) -> None:
    assert fields(f"{scheme}://{rest}") == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ssl=1", "no such parameter of a PostgreSQL URL: ssl"),
        ("sslmod=require", "no such parameter of a PostgreSQL URL: sslmod"),
        ("pgbouncer=true", "no such parameter of a PostgreSQL URL: pgbouncer"),
        ("hostaddr=127.0.0.1", "the parameter hostaddr is not supported: leave it out"),
        ("service=keys", "the parameter service is not supported: leave it out"),
        ("require_auth=scram-sha-256", "the parameter require_auth is not supported: leave it out"),
        ("channel_binding=require", "the parameter channel_binding can only be disable or prefer"),
        ("gssencmode=require", "the parameter gssencmode can only be disable or prefer"),
        ("load_balance_hosts=random", "the parameter load_balance_hosts can only be disable"),
        ("client_encoding=LATIN1", "the parameter client_encoding can only be UTF8"),
        ("sslmode=Require", "the parameter sslmode can only be disable or allow or prefer or require or "),
        ("target_session_attrs=master", "the parameter target_session_attrs can only be any or "),
        ("ssl_min_protocol_version=1.2", "the parameter ssl_min_protocol_version can only be TLSv1 or "),
        ("sslrootcert=system&sslmode=require", "the parameter sslrootcert can be system with sslmode verify-full only"),
        ("sslnegotiation=direct", "the parameter sslnegotiation can be direct with sslmode require or stricter only"),
        ("connect_timeout=0", "the parameter connect_timeout must be a whole number of seconds, from 1 to 9999"),
        ("connect_timeout=1.5", "the parameter connect_timeout must be a whole number of seconds, from 1 to 9999"),
        ("host=a:5432", "the parameter host has names, addresses or directories; ports go into port"),
        ("host=%40abstract", "the parameter host has names, addresses or directories; ports go into port"),
        ("host=a&host=b", "host stands twice"),
        ("host=a,b,c&port=1,2", "there must be one port, or as many as hosts"),
        ("port=0", "a port must be a number from 1 to 65535"),
        ("sslmode", "expected NAME=VALUE after ?"),
        ("user=a=b", "expected NAME=VALUE after ?"),
        ("user=%zz", "a % must be followed by two hexadecimal digits"),
        ("user=%00", "a % must be followed by two hexadecimal digits, and stand for no zero byte"),
        ("user=%ff", "not UTF-8 once it is percent-decoded"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(query: str, message: str) -> None:
    with pytest.raises(SetupError) as refused:
        parse_database_url(f"postgresql://ann:{SECRET}@db/keys?{query}")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:1/{SECRET}@db/keys",
        f"postgresql://ann:/{SECRET}@db/keys",
        f"postgresql://ann:a@{SECRET}@db/keys",
        f"postgresql://ann:a@{SECRET}:b@db/keys",
        f"postgresql://ann:/?{SECRET}=b@db/keys",
        f"postgresql://ann:[{SECRET}/x@db",
        f"postgresql://ann:%{SECRET}@db",
        f"postgresql://db:{SECRET}/keys",
        f"postgresql://{SECRET}:a:b/keys",
        f"postgresql+asyncpg://ann:{SECRET}@db/keys",
        f"mysql://ann:{SECRET}@db/keys",
        f"ann:{SECRET}@db",
        SECRET,
        "",
    ],
)
def test_no_error_repeats_what_may_be_a_part_of_a_password(url: str) -> None:
    """Where it was not percent-encoded, nobody knows where it ends."""
    with pytest.raises(SetupError) as refused:
        parse_database_url(url)
    assert SECRET not in str(refused.value)


def test_an_address_does_not_show_its_password() -> None:
    shown = repr(address(f"postgresql://ann:{SECRET}@db/keys?sslpassword={SECRET}"))
    assert SECRET not in shown
    assert "ann" in shown


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///keys.db", "keys.db"),
        ("sqlite:////var/lib/keys.db", "/var/lib/keys.db"),
        ("sqlite:///a%20b%3F%23%25.db", "a b?#%.db"),
        ("sqlite:///a#b.db", "a#b.db"),
    ],
)
def test_the_file_of_a_sqlite_url_is_percent_decoded(url: str, path: str) -> None:
    assert parse_database_url(url) == Path(path)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_every_path_of_a_file_can_be_a_url(path: str) -> None:
    assert parse_database_url(sqlite_url(Path("/", path))) == Path("/", path)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://host/x.db", "sqlite:///x.db?mode=ro", "sqlite:x.db",
     "sqlite:///file:x.db", "sqlite+aiosqlite:///x.db"],
)  # fmt: skip
def test_what_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(SetupError):
        parse_database_url(url)
