"""The Public Suffix List, against the reader that the package with the list has itself."""

from pathlib import Path

import publicsuffixlist
from hypothesis import example, given
from hypothesis import strategies as st

from authsvc.public_suffixes import public_suffix_within

LIST = publicsuffixlist.PublicSuffixList(accept_unknown=False)
RULES = [
    line.split()[0].lstrip("!").removeprefix("*.")
    for line in Path(publicsuffixlist.PSLFILE).read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("//")
]


@given(st.sampled_from(RULES), st.sampled_from(["", "a.", "www.", "city.", "a.b."]))
@example("ck", "www.")
@example("kawasaki.jp", "city.")
@example("kawasaki.jp", "a.")
def test_the_same_names_are_public_suffixes(rule: str, prefix: str) -> None:
    host = (prefix + rule).encode("idna").decode()
    if LIST.is_public(host):
        assert public_suffix_within(host) is not None
    else:
        within = public_suffix_within(host)
        assert within is None or within.endswith("." + prefix + rule)


@given(st.sampled_from(RULES))
def test_a_name_above_a_public_suffix_holds_one(rule: str) -> None:
    parent = rule.partition(".")[2]
    if parent:
        assert public_suffix_within(parent.encode("idna").decode()) is not None
