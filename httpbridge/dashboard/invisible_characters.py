"""Characters that count as printable, and show nothing. Used by `sessions` and `log_text`."""

_BLANKS = dict.fromkeys(
    map(
        ord,
        "\u034f"  # combining grapheme joiner
        "\u115f\u1160\u3164\uffa0"  # fillers of Hangul
        "\u2800",  # a Braille pattern without a dot
    ),
    " ",
)


def single_spaced(text: str) -> str:
    """Return the text with white space, and what looks like it, made one space, and none at its ends."""
    return " ".join(text.translate(_BLANKS).split())
