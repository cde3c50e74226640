"""Lines of a file become batches under the rules of requests."""

import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest

from httpbridge.ingest import log_import
from httpbridge.ingest.log_import import BadLine, Window, read_window, windows

AT = datetime(2026, 11, 23, 20, 15, tzinfo=UTC)
BYTES_MAX = 1000


def line(message: str = "hello", **fields: Any) -> bytes:
    return json.dumps({"level": "info", "message": message} | fields).encode() + b"\n"


def read(text: bytes) -> list[Window]:
    return [read_window(window, "demo", AT, BYTES_MAX) for window in windows(BytesIO(text), BYTES_MAX)]


def one(text: bytes) -> Window:
    (window,) = read(text)
    return window


def test_lines_of_a_service_and_an_environment_are_a_batch() -> None:
    text = line("a") + line("b", service="web") + line("c") + b"\n \r\n" + line("d", service="web", environment="test")
    window = one(text + line("e", service="web", release="1").rstrip())
    found = [(one.service, one.environment, [entry.message for entry in one.entries]) for one, _ in window.batches]
    assert found == [
        ("unknown", "production", ["a", "c"]),
        ("web", "production", ["b", "e"]),
        ("web", "test", ["d"]),
    ]
    assert window.batches[1][0].entries[1].release == "1"
    assert {(one.project_id, one.key_id, one.received_at) for one, _ in window.batches} == {("demo", "import", AT)}
    assert (window.bad, window.last) == ([], 7)


def test_a_line_of_logs_as_json_is_read_and_what_it_has_more_is_ignored() -> None:
    fields: dict[str, Any] = {"id": 7, "project_id": "x", "key_id": "y", "received_at": "2026-01-01T00:00:00Z"}
    window = one(line(timestamp="2026-11-23T10:00:00.000001Z", metadata={"a": 1}, **fields))
    ((batch, _),) = window.batches
    assert batch.project_id == "demo"
    (entry,) = batch.entries
    assert (entry.timestamp, entry.metadata) == (datetime(2026, 11, 23, 10, 0, 0, 1, UTC), '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"no JSON\n", "is not valid JSON"),
        (line().strip() + b"," + line(), "is not valid JSON"),
        (b'{"level": "info", "message": "a"}]}\n', "is not valid JSON"),
        (b"[]\n", "must be an object"),
        (b'{"level":"info","message":"\xff"}\n', "is not UTF-8"),
        (line(level="loud"), "level must be one of debug, info, warn, error"),
        (b'{"level":"info"}\n', "message is required"),
        (line(service=""), "service must not be empty"),
        (line(service=3), "service must be a string"),
        (line(environment="e" * 257), "environment must have at most 256 characters"),
        (line(metadata=3), "metadata must be an object"),
        (line("m" * BYTES_MAX * 3), "has more than 1,000 bytes"),
    ],
)
def test_a_line_that_is_refused_is_named_and_the_others_are_read(text: bytes, reason: str) -> None:
    window = one(line("a") + text + line("b") + line("c"))
    (bad,) = window.bad
    assert bad.number == 2
    assert bad.reason.startswith(reason)
    assert [entry.message for batch, _ in window.batches for entry in batch.entries] == ["a", "b", "c"]


def test_deep_nesting_is_refused() -> None:
    deep = b'{"level":"info","message":"m","metadata":' + b'{"a":' * 499 + b"1" + b"}" * 500 + b"\n"
    (window,) = [read_window(lines, "demo", AT, 10_000) for lines in windows(BytesIO(deep), 10_000)]
    assert [bad.reason for bad in window.bad] == ["The body is nested more than 500 levels deep"]


def test_halves_of_surrogate_pairs_and_nulls_are_mended() -> None:
    window = one(b'\xef\xbb\xbf{"level":"info","message":"a\\ud83d b\\u0000"}\n' + line("\xe9"))
    assert [entry.message for batch, _ in window.batches for entry in batch.entries] == ["a\ufffd b\ufffd", "\xe9"]


def test_the_same_file_makes_the_same_keys_whenever_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_import, "_WINDOW_LINES", 4)
    monkeypatch.setattr(log_import, "LOGS_MAX", 3)
    text = b"".join(line(str(number), service="web" if number % 5 == 0 else "api") for number in range(10))
    keys = [key for window in read(text) for _, key in window.batches]
    assert [key.key.split(":")[1] for key in keys] == ["1", "2", "5", "6", "9"]
    assert len({key.body for key in keys}) == 5
    assert [key for window in read(text) for _, key in window.batches] == keys
    # A line that is refused moves nothing: put right, only its own batch is another one.
    lines = text.splitlines(keepends=True)
    broken = read(b"".join([*lines[:6], b"?\n", *lines[7:]]))
    assert [bad for window in broken for bad in window.bad] == [BadLine(7, "is not valid JSON")]
    others = [key for window in broken for _, key in window.batches]
    assert [one == other for one, other in zip(keys, others, strict=True)] == [True, True, False, True, True]
    # The same lines at another place are others.
    assert not {key.key for key in keys} & {key.key for window in read(b"\n" + text) for _, key in window.batches}


def test_windows_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_import, "_WINDOW_BYTES", 100)
    assert [window.last for window in read(line("a" * 90) + line("b") * 4 + line("c" * 90))] == [1, 5, 6]
