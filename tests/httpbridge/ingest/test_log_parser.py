"""The body of POST /ingest/logs: the contract's table, row by row."""

import gzip
import json
import re
import sys
import tracemalloc
import zlib
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from httpbridge.errors import BodyRefusedError
from httpbridge.http.responses import refused_body
from httpbridge.ingest.json_text import NESTING_MAX
from httpbridge.ingest.log_parser import parse, parse_small
from httpbridge.ingest.mending import PIECE_BYTES
from httpbridge.logs import Level, LogBatch, LogEntry

RECEIVED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def batch_of(body: bytes) -> LogBatch:
    """Read a body in steps; what is read at once of it has to be the same, and nothing is that is refused."""
    at_once = parse_small(body, "demo", "key-1", RECEIVED_AT)
    steps = parse(body, "demo", "key-1", RECEIVED_AT)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            batch: LogBatch = end.value
            assert at_once in (batch, None)
            return batch
        except BodyRefusedError:
            assert at_once is None
            raise


def entry_of(fields: str) -> LogEntry:
    return batch_of(b'{"logs": [{"level": "info", "message": "m", %b}]}' % fields.encode()).entries[0]


def refusal_of(body: bytes) -> tuple[str, str]:
    with pytest.raises(BodyRefusedError) as caught:
        batch_of(body)
    return caught.value.path, str(caught.value)


def test_defaults_are_the_contracts_and_the_receipt_is_passed_through() -> None:
    assert batch_of(b'{"logs": [{"level": "warn", "message": ""}]}') == LogBatch(
        "demo", "key-1", RECEIVED_AT, "unknown", "production", None, [LogEntry(Level.WARN, "")]
    )


def test_every_field_is_kept_and_unknown_ones_are_ignored() -> None:
    texts = {name: f"the {name}" for name in ("trace_id", "span_id", "request_id", "vercel_id", "context", "release")}
    log = {
        "level": "debug",
        "message": "m",
        "timestamp": "2026-01-02T03:04:05Z",
        "metadata": {},
        "product": [1],
    } | texts
    body = {"service": "s", "environment": "e", "release": "r", "logs": [log], "product": {"logs": 1}}
    assert batch_of(json.dumps(body).encode()) == LogBatch(
        "demo",
        "key-1",
        RECEIVED_AT,
        "s",
        "e",
        "r",
        [LogEntry(Level.DEBUG, "m", RECEIVED_AT, "{}", **texts)],
    )


def test_an_explicit_null_is_the_same_as_absent() -> None:
    names = ("timestamp", "metadata", "trace_id", "span_id", "request_id", "vercel_id", "context", "release")
    log = {"level": "info", "message": "m"}
    batch = {"service": None, "environment": None, "release": None, "logs": [log | dict.fromkeys(names)]}
    assert batch_of(json.dumps(batch).encode()) == batch_of(json.dumps({"logs": [log]}).encode())


@pytest.mark.parametrize("required", ["level", "message"])
def test_a_required_field_that_is_null_is_missing(required: str) -> None:
    log: dict[str, Any] = {"level": "info", "message": "m"}
    log[required] = None
    with_null = refusal_of(json.dumps({"logs": [log]}).encode())
    del log[required]
    assert with_null == refusal_of(json.dumps({"logs": [log]}).encode()) == (f"logs[0].{required}", "is required")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02t03:04:05z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05.678", datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T00:30:00+05:30", datetime(2026, 1, 1, 19, 0, tzinfo=UTC)),
        ("2026-01-02T00:30:00-05:30", datetime(2026, 1, 2, 6, 0, tzinfo=UTC)),
        ("2026-01-02T00:30:00+0530", datetime(2026, 1, 1, 19, 0, tzinfo=UTC)),  # not RFC 3339, and common
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),  # a leap second
        ("2016-12-31t23:59:60.5z", datetime(2016, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("2016-12-31T23:59:60", datetime(2016, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("2017-01-01T05:29:60.25+05:30", datetime(2016, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("0001-01-01T05:00:00+05:00", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_timestamps_become_utc(text: str, expected: datetime) -> None:
    timestamp = entry_of(f'"timestamp": "{text}"').timestamp
    assert timestamp == expected
    assert timestamp.tzinfo is UTC


def test_a_leap_second_leaves_the_rest_of_its_batch_as_it_was() -> None:
    others = [
        {"level": "info", "message": "23:59:60Z", "metadata": {"timestamp": "2016-12-31T23:59:60Z"}},
        {"level": "info", "message": "m", "timestamp": "2026-01-02T03:04:05Z"},
        {"level": "info", "message": "m", "timestamp": None},
    ]
    leap = {"level": "info", "message": "m", "timestamp": "2016-12-31T23:59:60Z"}
    entries = batch_of(json.dumps({"logs": [*others, leap]}).encode()).entries
    assert entries[:3] == batch_of(json.dumps({"logs": others}).encode()).entries
    assert refusal_of(json.dumps({"logs": [leap, {"level": "info"}]}).encode()) == ("logs[1].message", "is required")


@pytest.mark.parametrize(
    "value",
    [
        '"2026-01-02"',
        '"yesterday"',
        '""',
        "1767323045",
        '"2026-02-30T00:00:00Z"',
        '"2026-01-02T12:00:60Z"',
        '"2026-01-02T23:59:61Z"',
        '"2026-01-02T23:59:60+01:00"',
        '"2026-01-02T23:59:60.Z"',
        '"2026-01-02T23:59:60:60Z"',
        '"2026-01-02T03:04:05+01"',
        '"2026-01-02T24:00:00Z"',
        '"0000-01-01T00:00:00Z"',
        '"10000-01-01T00:00:00Z"',
        '"0001-01-01T00:00:00+05:00"',
        '"9999-12-31T23:59:59-05:00"',
        '"9999-12-31T23:59:59.9999999Z"',
    ],
)
def test_a_timestamp_that_is_none_or_leaves_the_years_is_refused(value: str) -> None:
    path, message = refusal_of(b'{"logs": [{"level": "info", "message": "m", "timestamp": %b}]}' % value.encode())
    assert path == "logs[0].timestamp"
    assert message in ("must be an RFC 3339 timestamp", "leaves the years 1 to 9999 in UTC")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": 1.10, "b": 1e400, "c": 12345678901234567890123, "d": -0.0}',
        '{"a":1,"a":2}',
        '{ "a" :\t[ null , true ] }',
        '{"é": "😀", "\\u00e9": "\\ud83d\\ude00"}',
        r'{"a": "\\u0000"}',
        r'{"\\\\u0000": "\\\""}',
    ],
)
def test_metadata_is_kept_as_it_was_written(text: str) -> None:
    assert entry_of(f'"metadata": {text}').metadata == text
    assert entry_of(f'"metadata":  {text} ').metadata == text


@pytest.mark.parametrize("text", ["[]", '"{}"', "1", "true"])
def test_metadata_must_be_an_object(text: str) -> None:
    body = b'{"logs": [{"level": "info", "message": "m"}, {"level": "info", "message": "m", "metadata": %b}]}'
    assert refusal_of(body % text.encode()) == ("logs[1].metadata", "must be an object")


@pytest.mark.parametrize("beside", ["", r', "context": "\u0000"', ', "context": "' + "x" * 300_000 + '"'])
def test_keys_and_levels_may_be_written_in_escapes(beside: str) -> None:
    """However the body is read."""
    log = "".join(
        f'"{escaped(key)}": "{escaped(value)}", ' for key, value in {"level": "error", "message": "m"}.items()
    )
    (entry,) = batch_of(f'{{"{escaped("logs")}": [{{{log} "x": 1{beside}}}]}}'.encode()).entries
    assert (entry.level, entry.message) == (Level.ERROR, "m")


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


HALVES = [r"\u0000", r"\ud83d", r"\uDE00", r"\ud83d\ud83d", r"\ude00\ud83d", "\ud83d", "\ude00\udc80"]
"""U+0000, and halves of surrogate pairs as JavaScript and as Python write them."""


def mended(text: str) -> str:
    """Return what is stored for a few such characters: U+FFFD each."""
    return "\ufffd" * len(re.findall(r"\\u....|.", text))


def as_sent(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["message", "trace_id", "span_id", "request_id", "vercel_id", "context", "release"])
def test_a_character_that_is_none_is_replaced_in_any_string_of_an_entry(name: str, half: str) -> None:
    """The rest of the string, of the entry and of the batch is as it was."""
    good = '{"level": "info", "message": "\\ud83d\\ude00\\\\u0000"}'
    bad = f'{{"level": "info", "message": "m", "{name}": "a{half}b\\ud83d\\ude00"}}'
    first, second, third = batch_of(as_sent(f'{{"logs": [{good}, {bad}, {good}]}}')).entries
    assert first == third == LogEntry(Level.INFO, "😀\\u0000")
    assert getattr(second, name) == f"a{mended(half)}b😀"


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["service", "environment", "release"])
def test_a_character_that_is_none_is_replaced_in_any_string_of_a_batch(name: str, half: str) -> None:
    body = f'{{"{name}": "{half}", "logs": [{{"level": "info", "message": "m"}}]}}'
    assert getattr(batch_of(as_sent(body)), name) == mended(half)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "text",
    ['{"a": "<>"}', '{"a<>": {"<>": 1.10}}', r'{"a": ["\\<>", "\\\\\\<>\"<>"]}', r'{"<>x\ud83d\ude00<>": 1e999}'],
)
def test_metadata_is_its_text_but_for_characters_that_are_none(text: str, half: str) -> None:
    sent = text.replace("<>", half)
    (entry,) = batch_of(as_sent(f'{{"logs": [{{"level": "info", "message": "m", "metadata": {sent}}}]}}')).entries
    stored = entry.metadata or ""
    assert stored.replace("\ufffd", r"\ufffd") == text.replace("<>", mended(half).replace("\ufffd", r"\ufffd"))
    assert json.loads(stored) == json.loads(text.replace("<>", mended(half)))


@pytest.mark.parametrize(
    "text",
    [r"\\u0000", r"\\ud83d", r"\\\\ude00", r"\ud83d\ude00", r"\\\ud83d\ude00", r"\ud83d\ude00\\ud83d", r"\n\u0001"],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    beside = r', "context": "\u0000"'
    body = f'{{"logs": [{{"level": "info", "message": "{text}", "metadata": {{"{text}": 1}}{beside}}}]}}'
    (entry,) = batch_of(body.encode()).entries
    assert (entry.message, entry.metadata) == (json.loads(f'"{text}"'), f'{{"{text}": 1}}')


@pytest.mark.parametrize("half", HALVES)
def test_a_character_that_is_none_harms_nobody_where_it_is_ignored(half: str) -> None:
    body = f'{{"product{half}": "{half}", "logs": [{{"level": "info", "message": "m", "{half}": "{half}"}}]}}'
    assert batch_of(as_sent(body)).entries == [LogEntry(Level.INFO, "m")]


def test_a_byte_order_mark_is_skipped() -> None:
    body = b'{"logs": [{"level": "info", "message": "m"}]}'
    assert batch_of(b"\xef\xbb\xbf" + body) == batch_of(body)
    assert entry_of('"context": "\ufeff", "metadata": {"\ufeff": 1}').metadata == '{"\ufeff": 1}'


LIMITS = [("service", 256), ("environment", 256), ("release", 128)]


@pytest.mark.parametrize(("name", "limit"), LIMITS)
def test_lengths_are_counted_in_characters(name: str, limit: int) -> None:
    def body(length: int) -> bytes:
        text = "😀" * length
        return json.dumps({name: text, "logs": [{"level": "info", "message": "m"}]}, ensure_ascii=False).encode()

    assert getattr(batch_of(body(limit)), name) == "😀" * limit
    assert refusal_of(body(limit + 1)) == (name, f"must have at most {limit} characters")


def test_a_thousand_entries_are_taken_and_one_more_is_not() -> None:
    def body(count: int) -> bytes:
        return json.dumps({"logs": [{"level": "info", "message": "m"}] * count}).encode()

    assert len(batch_of(body(1000)).entries) == 1000
    assert refusal_of(body(1001)) == ("logs", "must have at most 1000 entries")


LOG = b'{"logs": [{"level": "info", "message": "m", %b}]}'
DEEP = 100_000
TOO_DEEP = "The body is nested more than 500 levels deep"


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        (b"", "", "The body is empty"),
        (b" ", "", "The body is not valid JSON: it ends too early"),
        (b'{"logs": [', "", "The body is not valid JSON: it ends too early"),
        (b'{"logs": []} x', "", "The body is not valid JSON (byte 13)"),
        (LOG % b'"x": 1' + b" x", "", "The body is not valid JSON (byte 54)"),
        (b'\xef\xbb\xbf{"logs": []}', "logs", "must not be empty"),
        (b"\xef\xbb\xbf", "", "The body is empty"),
        (b'{"x": NaN}', "", "The body is not valid JSON (byte 6)"),
        (b'{"x": "\x01"}', "", "The body is not valid JSON (byte 7)"),
        (LOG % b'"context": "\0\0\\u0000"', "", "The body is not valid JSON (byte 56)"),
        (b'{"x": "\xff"}', "", "The body is not UTF-8 (byte 7)"),
        (b"[" * DEEP, "", "The body must be an object"),
        (b'{"x": ' + b"[" * DEEP, "", TOO_DEEP),
        (
            LOG % (b'"metadata": {"a": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
            "",
            TOO_DEEP,
        ),
        (b"null", "", "The body must be an object"),
        (b"[]", "", "The body must be an object"),
        (b"{}", "logs", "is required"),
        (b'{"logs": null}', "logs", "is required"),
        (b'{"logs": {}}', "logs", "must be an array"),
        (b'{"logs": []}', "logs", "must not be empty"),
        (b'{"logs": [null]}', "logs[0]", "must be an object"),
        (b'{"logs": ["x"]}', "logs[0]", "must be an object"),
        (b'{"logs": [{"level": "loud", "message": "m"}]}', "logs[0].level", "must be one of debug, info, warn, error"),
        (b'{"logs": [{"level": 1, "message": "m"}]}', "logs[0].level", "must be one of debug, info, warn, error"),
        (b'{"logs": [{"level": "info", "message": 1}]}', "logs[0].message", "must be a string"),
        (LOG % b'"context": {}', "logs[0].context", "must be a string"),
        (LOG % b'"release": "%b"' % (b"x" * 129), "logs[0].release", "must have at most 128 characters"),
        (b'{"service": "", "logs": []}', "service", "must not be empty"),
        (b'{"environment": "", "logs": []}', "environment", "must not be empty"),
        (b'{"release": 1, "logs": []}', "release", "must be a string"),
        (b"1e999", "", "The body must be an object"),
        (b"1" * 5000, "", "The body must be an object"),
        (b'{"service": 1e999, "logs": []}', "service", "must be a string"),
        (b'{"logs": 1e999}', "logs", "must be an array"),
        (b'{"logs": [1e999]}', "logs[0]", "must be an object"),
        (b'{"logs": [{"level": 1e999, "message": "m"}]}', "logs[0].level", "must be one of debug, info, warn, error"),
        (b'{"logs": [{"level": "info", "message": 1e400}]}', "logs[0].message", "must be a string"),
        (b'{"logs": [{"level": "info", "message": %b}]}' % (b"1" * 5000), "logs[0].message", "must be a string"),
        (LOG % b'"timestamp": 1e999', "logs[0].timestamp", "must be an RFC 3339 timestamp"),
        (b'{"logs": [%b1]}' % (b'{"level": "info", "message": "m"},' * 999), "logs[999]", "must be an object"),
        (b'{"logs": [%b1]}' % (b'{"level": "info", "message": "m"},' * 1000), "logs", "must have at most 1000 entries"),
    ],
)
def test_the_first_problem_is_named_by_place_and_rule(body: bytes, path: str, message: str) -> None:
    assert refusal_of(body) == (path, message)


@pytest.mark.parametrize("before", [0, 1, PIECE_BYTES - 12, PIECE_BYTES, 3 * PIECE_BYTES])
def test_the_first_byte_that_is_not_utf8_is_named_wherever_it_is(before: int) -> None:
    """Halves of surrogate pairs before it are no reason."""
    text = b"\xed\xa0\xbd" + b"x" * before
    assert refusal_of(b'{"x": "%b\xff"}' % text) == ("", f"The body is not UTF-8 (byte {7 + len(text)})")


@pytest.mark.parametrize("more", ['{"level": "info", "message": "m"}', "[]", '{"logs": []}'])
@pytest.mark.parametrize(
    "first", ['{"level": "info", "message": "m"}', '{"logs": [{"level": "info", "message": "m"}]}', "{}"]
)
def test_several_documents_are_told_from_one_that_is_broken(first: str, more: str) -> None:
    """Newline-delimited JSON has entries where a batch should be: what is wrong is not that `logs` is missing."""
    _, message = refusal_of(f"{first}\n{more}\n".encode())
    assert message == (
        f"The body is more than one JSON document, the next of which begins at byte {len(first) + 1}: "
        'send all entries in one, as {"logs": [...]}'
    )


COMPRESSED = b'{"logs": [{"level": "info", "message": "m"}]}' * 30


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (gzip.compress(COMPRESSED, mtime=0), "looks like gzip, and the header Content-Encoding: gzip is missing"),
        (zlib.compress(COMPRESSED, 1), "looks like deflate, and the header Content-Encoding: deflate is missing"),
        (zlib.compress(COMPRESSED, 6), "looks like deflate, and the header Content-Encoding: deflate is missing"),
        (zlib.compress(COMPRESSED, 9), "looks like deflate, and the header Content-Encoding: deflate is missing"),
        (
            b"\x28\xb5\x2f\xfd\x24",
            "looks like zstd, which is not decoded here: send it as gzip, as deflate, or as it is",
        ),
        (b"BZh91AY&SY", "looks like bzip2, which is not decoded here: send it as gzip, as deflate, or as it is"),
        ('{"logs": []}'.encode("utf-16"), "looks like UTF-16 or UTF-32: send it in UTF-8"),
        ('{"logs": []}'.encode("utf-16-le"), "looks like UTF-16 or UTF-32: send it in UTF-8"),
        ('{"logs": []}'.encode("utf-32-be"), "looks like UTF-16 or UTF-32: send it in UTF-8"),
        (b"xyz", "is not valid JSON (byte 0)"),
    ],
)
def test_what_a_body_looks_like_is_said(body: bytes, message: str) -> None:
    assert refusal_of(body) == ("", f"The body {message}")


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + ("1" if opening.endswith(":") else "") + closing * levels


@pytest.mark.parametrize(
    ("frame", "levels_around"),
    [
        ('{"logs": [{"level": "info", "message": "m", "metadata": {"a": <>}}]}', 4),
        ('{"logs": [{"level": "info", "message": "m", "x": <>}]}', 3),
        ('{"x": <>, "logs": [{"level": "info", "message": "m"}]}', 1),
        ('{"logs": [{"level": "info", "message": "}}}]]]\\"\\\\", "x": <>}]}', 3),
        ('{"logs": [{"level": "info", "message": "m"}, {"level": "info", "message": "m", "x": [[], <>]}]}', 4),
        ('{"logs": [{"level": "info", "message": "' + "m" * 300_000 + '", "x": <>}]}', 3),
        ('{"logs": [{"level": "info", "message": "' + '\\"' * 65_000 + '", "x": <>}]}', 3),
        ('{"x": "' + "\\\\" * 33_000 + '", "x": <>, "logs": [{"level": "info", "message": "m"}]}', 1),
    ],
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"":', "}"), ('[{"]":', "}]")])
def test_five_hundred_levels_of_nesting_are_taken_and_one_more_is_not(
    frame: str, levels_around: int, opening: str, closing: str
) -> None:
    """Wherever they are: of our own, as Python's limits differ from version to version."""
    each = len(closing)
    most = (NESTING_MAX - levels_around) // each
    rest = "[" * ((NESTING_MAX - levels_around) % each), "]" * ((NESTING_MAX - levels_around) % each)
    fits = rest[0] + nested(most, opening, closing) + rest[1]
    assert batch_of(frame.replace("<>", fits).encode()).entries
    assert refusal_of(frame.replace("<>", f"[{fits}]").encode()) == ("", TOO_DEEP)


def test_brackets_in_strings_are_not_nesting() -> None:
    text = "[{" * 1000
    entry = entry_of(f'"metadata": {{"{text}": "{text}\\"{text}"}}, "context": "{text}"')
    assert entry.context == text


def test_many_brackets_next_to_each_other_are_not_nesting() -> None:
    metadata = '{"a": [' + ",".join(['[{"b": []}]'] * 2000) + "]}"
    assert entry_of(f'"metadata": {metadata}').metadata == metadata


def test_a_million_objects_and_arrays_are_taken_and_one_more_is_not() -> None:
    def body(count: int) -> bytes:
        return LOG % (b'"x": [1' + b",[]" * (count - 4) + b"]")

    assert batch_of(body(1_000_000)).entries
    assert refusal_of(body(1_000_001)) == ("", "The body has more than 1,000,000 objects and arrays")


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        ('{<>"logs": [{"level": "info", "message": "m"}]}', ""),
        ('{"logs": [{<>"level": "info", "message": "m"}]}', "logs[0]"),
    ],
)
def test_the_fields_of_a_large_object_are_bounded(frame: str, path: str) -> None:
    """Each costs a look at its name."""

    def body(count: int) -> bytes:
        own = 1 if path == "" else 2
        fields = [f'"x": "{"x" * 300_000}"'] + ['"level":"info"'] * (count - own - 1)
        return frame.replace("<>", ",".join(fields) + ",").encode()

    assert batch_of(body(4000)).entries == [LogEntry(Level.INFO, "m")]
    assert refusal_of(body(4001)) == (path, "must have at most 4,000 fields")


def test_a_small_body_in_order_is_read_at_once() -> None:
    """Whatever it has of what the contract names: it waits for no turn."""
    log = {"level": "info", "message": "é😀", "timestamp": "2026-01-02T03:04:05+01:00", "metadata": {"a": [1, {}]}}
    body = json.dumps({"service": "s", "logs": [log] * 50}, ensure_ascii=False).encode()
    assert parse_small(body, project_id="demo", key_id="key-1", received_at=RECEIVED_AT) == batch_of(body)


PLACES = (
    "` - at `$.logs[0].message`",
    " - at `$",
    "`",
    "' - at `$.logs[0].level`",
    "Object missing required field `x`",
)
HOSTILE = st.lists(st.sampled_from([*PLACES, "canary " * 300, "canary", "\n"]) | st.text(max_size=3), max_size=4).map(
    lambda pieces: "canary" + "".join(pieces)
)
VALUES = HOSTILE | st.lists(HOSTILE, max_size=1) | st.dictionaries(HOSTILE, HOSTILE, max_size=1)
FIELDS = st.sampled_from(["level", "message", "timestamp", "metadata", "trace_id", "release"]) | HOSTILE
ENTRIES = st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda fields: {"level": "info", "message": "m"} | fields)
BATCH_FIELDS = st.sampled_from(["service", "environment", "release", "logs"]) | HOSTILE


@given(
    st.builds(
        lambda fields, entries: json.dumps({"logs": entries} | fields).encode(),
        st.dictionaries(BATCH_FIELDS, VALUES, max_size=2),
        st.lists(ENTRIES | VALUES, min_size=1, max_size=2),
    )
    | HOSTILE.map(str.encode)
)
@example(json.dumps({"logs": [{"level": PLACES[0] + "canary" * 1000, "message": "m"}]}).encode())
@example(json.dumps({"logs": [{"level": PLACES[1] + "canary" * 1000, "message": "m"}]}).encode())
@example(json.dumps({"logs": [{"level": "canary" + PLACES[0], "message": "m"}]}).encode())
def test_a_refusal_is_short_and_repeats_nothing_of_the_body(body: bytes) -> None:
    try:
        batch_of(body)
    except BodyRefusedError as error:
        answer = refused_body(error).body
        assert len(answer) < 2048
        assert b"canary" not in answer


def test_a_refused_level_is_named_by_its_place_whatever_it_is() -> None:
    for level in PLACES:
        body = json.dumps({"logs": [{"level": "info", "message": "m"}, {"level": level, "message": "m"}]}).encode()
        assert refusal_of(body) == ("logs[1].level", "must be one of debug, info, warn, error")


def issues_of(body: bytes) -> list[tuple[str, str]]:
    with pytest.raises(BodyRefusedError) as caught:
        batch_of(body)
    answer = json.loads(refused_body(caught.value).body)
    first = answer["issues"][0]
    assert answer["error"] == f"{first['path']} {first['message']}".lstrip()
    return [(issue["path"], issue["message"]) for issue in answer["issues"]]


GOOD: dict[str, Any] = {"level": "info", "message": "m"}


def test_every_problem_of_a_batch_is_named_in_order_with_its_entry() -> None:
    wrong = {"level": "loud", "timestamp": "yesterday", "metadata": [], "trace_id": 1, "release": "x" * 129}
    late = {"timestamp": "9999-12-31T23:59:59-01:00", "message": None}
    body = {"logs": [GOOD, wrong, GOOD, 1, GOOD | late, GOOD], "service": "", "environment": 5, "release": "r" * 129}
    assert issues_of(json.dumps(body).encode()) == [
        ("service", "must not be empty"),
        ("environment", "must be a string"),
        ("release", "must have at most 128 characters"),
        ("logs[1].level", "must be one of debug, info, warn, error"),
        ("logs[1].message", "is required"),
        ("logs[1].timestamp", "must be an RFC 3339 timestamp"),
        ("logs[1].metadata", "must be an object"),
        ("logs[1].trace_id", "must be a string"),
        ("logs[1].release", "must have at most 128 characters"),
        ("logs[3]", "must be an object"),
        ("logs[4].message", "is required"),
        ("logs[4].timestamp", "leaves the years 1 to 9999 in UTC"),
    ]


@pytest.mark.parametrize("padding", ["", "x" * 1000, "x" * 300_000])
def test_no_more_than_twenty_problems_are_named(padding: str) -> None:
    """In entries of any size, as far apart as they may be."""
    good, bad = GOOD | {"context": padding}, GOOD | {"context": padding, "level": "x"}
    count = 12 if len(padding) > 1000 else 1000
    body = {"service": 1, "logs": [bad, *[good] * (count - 2), bad]}
    assert [path for path, _ in issues_of(json.dumps(body).encode())] == [
        "service", "logs[0].level", f"logs[{count - 1}].level",
    ]  # fmt: skip
    many = issues_of(json.dumps({"logs": [GOOD, *[bad | {"message": 1}] * 11]}).encode())
    assert [path for path, _ in many] == [f"logs[{n // 2 + 1}].{('level', 'message')[n % 2]}" for n in range(20)]


def test_a_refusal_with_all_the_problems_it_may_name_is_short() -> None:
    worst = dict.fromkeys(("level", "timestamp", "metadata", "request_id", "vercel_id", "release"), 1)
    body = json.dumps({"logs": [GOOD] * 980 + [worst] * 20}).encode()
    with pytest.raises(BodyRefusedError) as caught:
        batch_of(body)
    assert len(caught.value.issues) == 20
    assert len(refused_body(caught.value).body) < 2048


@pytest.mark.parametrize("fraction", ["9999999", "9999995", "99999951", "999999" + "9" * 30])
def test_an_instant_that_is_rounded_out_of_the_years_is_told_so(fraction: str) -> None:
    body = LOG % f'"timestamp": "9999-12-31T23:59:59.{fraction}Z"'.encode()
    assert refusal_of(body) == ("logs[0].timestamp", "leaves the years 1 to 9999 in UTC")


@pytest.mark.parametrize("value", [b"1", b"[]", b"1e999", b'"yesterday"', b'"2026-02-30T00:00:00Z"'])
def test_a_leap_second_does_not_change_what_is_said_of_other_timestamps(value: bytes) -> None:
    leap = b'{"level": "info", "message": "m", "timestamp": "2016-12-31T23:59:60Z"}'
    other = b'{"level": "info", "message": "m", "timestamp": %b}' % value
    with_leap = refusal_of(b'{"logs": [%b, %b]}' % (leap, other))
    assert with_leap == ("logs[1].timestamp", refusal_of(b'{"logs": [%b]}' % other)[1])


@pytest.mark.parametrize("text", [":60" * 1_000_000 + "Z", "2016-12-31T23:59:60." + "0" * 3_000_000 + "Z"])
def test_a_long_timestamp_is_not_searched_for_leap_seconds(text: str) -> None:
    """What a search makes of it takes many times its memory, and as much of the processor."""
    body = LOG % f'"timestamp": "{text}"'.encode()
    tracemalloc.start()
    try:
        assert refusal_of(body) == ("logs[0].timestamp", "must be an RFC 3339 timestamp")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * len(body)


def test_of_repeated_keys_the_last_counts() -> None:
    entry = entry_of('"context": "first", "context": "last", "metadata": {"a": 1}, "metadata": {"b": 2}')
    assert (entry.context, entry.metadata) == ("last", '{"b": 2}')


PIECES = 5 * 1024 * 1024 // PIECE_BYTES


@pytest.mark.parametrize(
    ("message", "entries", "steps_min"),
    [
        ("", 1000, 1000 // 64),
        ("x" * 5000, 1000, PIECES),
        ("é" * 2500, 1000, 2 * PIECES),
        (r"\n" * 2_600_000, 1, 2 * PIECES),
        ("😀" * 1_300_000, 1, 3 * PIECES),
        (r"\ud83d" * 870_000, 1, 4 * PIECES),
        (r"\ud83d" * 870, 1000, 4 * PIECES),
        ('","trace_id":"' * 300, 1000, PIECES),
        (f'","x":"{"x" * PIECE_BYTES}' * 19, 1, 2 * 19),  # each is skipped by itself
    ],
)
@pytest.mark.parametrize("last", ["", ', "timestamp": "2016-12-31T23:59:60Z"', ', "level": "loud"'])
def test_a_large_body_is_read_in_many_steps(message: str, entries: int, steps_min: int, last: str) -> None:
    """Whatever is in it, and though it is refused for its end."""
    log = f'{{"level": "info", "message": "{message}"<>}}'
    body = f'{{"logs": [{",".join([log] * entries).replace("<>", "", entries - 1).replace("<>", last)}]}}'.encode()
    steps = parse(body, project_id="demo", key_id="key-1", received_at=RECEIVED_AT)
    with nullcontext() if "loud" not in last else pytest.raises(BodyRefusedError):
        assert sum(1 for _ in steps) >= steps_min


ESCAPES = r"\ud83d\u000a" * 200
STEP_CALLS_MAX = 5000
"""Of functions, in Python or in C: so many take a few milliseconds, and what each may cost is bounded in bytes."""


@pytest.mark.parametrize(
    "fields",
    [
        '"message": "m", "timestamp": "2016-12-31T23:59:60Z"',
        '"message": "m", "timestamp": "2016-12-31T23:59:60.%sZ"' % ("9" * 40),
        '"message": "m", "timestamp": "2026-01-01T00:00:00.%s+23:59"' % ("1" * 60),
        '"message": "m", "timestamp": "yesterday"',
        f'"message": "{ESCAPES}"',
        f'"message": "m", "context": "{ESCAPES}", "trace_id": "{ESCAPES}"',
        f'"message": "m", "metadata": {{"{ESCAPES}": "{ESCAPES}"}}',
    ],
    ids=["leap seconds", "long leap seconds", "long fractions", "no timestamps", "message", "fields", "metadata"],
)
def test_a_step_does_little_whatever_all_entries_have(fields: str) -> None:
    """What msgspec does not read at once is read entry by entry."""
    log = f'{{"level": "info", {fields}}}'
    body = f'{{"logs": [{",".join([log] * 1000)}]}}'.encode()
    steps = parse(body, project_id="demo", key_id="key-1", received_at=RECEIVED_AT)
    calls = most = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        with suppress(BodyRefusedError):
            for _ in steps:
                calls, most = 0, max(most, calls)
    finally:
        sys.setprofile(None)
    assert 0 < max(most, calls) < STEP_CALLS_MAX


def test_a_small_body_is_read_in_few_steps() -> None:
    """A turn costs more than what is done in it; and a body that something is wrong with is refused soon."""
    body = LOG % rb'"context": "\u0000"'
    assert sum(1 for _ in parse(body, project_id="demo", key_id="key-1", received_at=RECEIVED_AT)) < 8
