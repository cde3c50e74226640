"""Stored text as it is shown: harmless, short, and JSON laid out without a change."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpbridge.dashboard.log_page.entries import INDENT_LEVELS_MAX, headline, laid_out_json, shown

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"),
        ("ünïcode 🚀 שלום", "ünïcode 🚀 שלום"),
        ("two\nlines\r\nand\ta tab", "two\nlines\nand\ta tab"),
        ("\x1b[31mred\x1b[0m\x07", "\\x1b[31mred\\x1b[0m\\x07"),
        ("\u202eevil\u2066\u200f\ufeff", "\\u202eevil\\u2066\\u200f\\ufeff"),
        ("line\u2028separator\x85", "line\\u2028separator\\x85"),
        ("\rover", "\\rover"),
        ("\U000e0001tag", "\\U000e0001tag"),
        ("1\xa0234\u202f567\u3000€\u200b", "1 234 567 €\\u200b"),
    ],
)
def test_what_does_not_print_becomes_visible(text: str, seen: str) -> None:
    assert shown(text, len(text), 1000) == (seen, 0)


def test_long_texts_are_cut_and_counted() -> None:
    assert shown("abcdef", 1_000_000, 4) == ("abcd", 999_996)
    assert headline("two\n lines  \x1b[31m" + "x" * 100, 20) == "two lines \\x1b[31mxx…"
    assert headline("short", 20) == "short"
    assert headline("\u3164\u2800 \u115f\u1160\uffa0\u034f", 20) == ""
    assert headline("a\xa0b\u2800\u2800c", 20) == "a b c"


def test_what_becomes_longer_by_escapes_is_cut_at_a_whole_one() -> None:
    assert shown("\U000e0001" * 100, 100, 25) == ("\\U000e0001" * 2, 98)
    assert shown("ab\x07\x07cd", 6, 7) == ("ab\\x07", 3)
    assert shown("ab\r\n\x07", 5, 3) == ("ab\n", 1)
    assert shown("\x07", 1, 0) == ("", 1)
    assert headline("\U000e0001" * 3, 29) == "\\U000e0001" * 2 + "…"
    text = '["' + "\u202e" * 10 + '"]'
    assert laid_out_json(text, len(text), 24) == ('[\n  "' + "\\u202e" * 3, 9)


@given(st.text(st.characters() | st.sampled_from("\r\n\x07\U000e0001")), st.integers(0, 40))
def test_any_text_is_shown_within_its_bound_and_the_rest_is_counted(text: str, characters_max: int) -> None:
    seen = shown(text, len(text), characters_max)
    assert len(seen[0]) <= characters_max
    assert seen[0].replace("\n", "").replace("\t", "").isprintable()
    taken = text[: len(text) - seen[1]]
    assert shown(taken, len(taken), 10 * len(text)) == (seen[0], 0)
    if seen[1]:
        assert len(shown(text[: len(taken) + 1], 0, 10 * len(text))[0]) > characters_max or text[len(taken)] == "\r"


def test_json_is_laid_out_as_it_was_written() -> None:
    """Numbers, order, repeated keys and escapes stay."""
    text = '{"a":1.0E+2,"a" : 123456789012345678901234567890,\n"e":"\\u0041\\"{,}[:]","l":[1,[],{}],"o":{"n":null}}'
    assert laid_out_json(text, len(text), 1000)[0] == (
        "{\n"
        '  "a": 1.0E+2,\n'
        '  "a": 123456789012345678901234567890,\n'
        '  "e": "\\u0041\\"{,}[:]",\n'
        '  "l": [\n'
        "    1,\n"
        "    [],\n"
        "    {}\n"
        "  ],\n"
        '  "o": {\n'
        '    "n": null\n'
        "  }\n"
        "}"
    )


@given(_JSON, st.sampled_from([None, 1]))
def test_json_stays_the_same_value(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    laid_out = laid_out_json(text, len(text), 1_000_000)
    assert json.loads(laid_out[0]) == value
    assert laid_out[1] == 0
    assert laid_out == laid_out_json(laid_out[0], len(laid_out[0]), 1_000_000)


@given(_JSON, st.integers(0, 60), st.integers(0, 60))
def test_json_that_is_cut_anywhere_is_laid_out_as_far_as_it_goes(value: object, cut: int, characters_max: int) -> None:
    text = json.dumps({"k": value}, ensure_ascii=True)
    part = text[:cut]
    laid_out = laid_out_json(part, len(text), characters_max)
    assert len(laid_out[0]) <= characters_max
    assert 0 <= laid_out[1] <= len(text)
    if characters_max == 60 and len(part) < 10:
        assert "".join(laid_out[0].split()) == "".join(part.split())
        assert laid_out[1] == len(text) - len(part)


@pytest.mark.parametrize("text", ["[" * 4000, '{"a":' * 800, '"' + "\\" * 3999, '"' * 4000, "," * 4000, '\\"' * 2000])
def test_hostile_json_is_laid_out_quickly_and_short(text: str) -> None:
    laid_out = laid_out_json(text, len(text), 8000)
    assert len(laid_out[0]) <= 8000
    assert max(len(line) - len(line.lstrip()) for line in laid_out[0].split("\n")) <= 2 * INDENT_LEVELS_MAX


def test_json_shows_what_does_not_print() -> None:
    text = '{"a":\r\n\r"\u202e\x7f"}'
    assert laid_out_json(text, len(text), 100)[0] == '{\n  "a": "\\u202e\\x7f"\n}'
