"""The Public Suffix List, from the package `publicsuffixlist`: under which names anybody can get a host. Pure.

It is read once, at the first wildcard entry. The rules are those of https://publicsuffix.org/list/, but for the last:
what no rule names, such as `localhost` or a company's own `internal`, is no public suffix.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import idna
from publicsuffixlist import PSLFILE


class _Rules(NamedTuple):
    suffixes: frozenset[str]
    wildcards: frozenset[str]
    """Each name directly under one of these is a public suffix."""
    exceptions: frozenset[str]
    """These are none, although a wildcard says so."""
    above: dict[str, str]
    """Names that have a public suffix somewhere under them, each with one."""


def public_suffix_within(host: str) -> str | None:
    """Return a public suffix that a wildcard over the host would admit as a whole; None when there is none.

    `host` is in A-label form and lower case. The suffix is the host itself, or under it: `s3.amazonaws.com`, say.
    """
    rules = _rules()
    host = _unicode(host)
    parent = host.partition(".")[2]
    if host in rules.suffixes or (parent in rules.wildcards and host not in rules.exceptions):
        return host
    return rules.above.get(host)


@cache
def _rules() -> _Rules:
    suffixes, wildcards, exceptions = set(), set(), set()
    above: dict[str, str] = {}
    for line in Path(PSLFILE).read_text("utf-8").splitlines():
        rule = line.partition(" ")[0]
        if not rule or rule.startswith("//"):
            continue
        name = rule.lstrip("!").removeprefix("*.")
        if rule.startswith("!"):
            exceptions.add(name)
            continue
        if rule.startswith("*."):
            wildcards.add(name)
            above.setdefault(name, f"*.{name}")
        else:
            suffixes.add(name)
        parent = name
        while parent := parent.partition(".")[2]:
            above.setdefault(parent, name)
    if not (suffixes and wildcards and exceptions):
        raise RuntimeError("the Public Suffix List could not be read")
    return _Rules(frozenset(suffixes), frozenset(wildcards), frozenset(exceptions), above)


def _unicode(host: str) -> str:
    """Return the host as the list writes it."""
    if "xn--" not in host:
        return host
    try:
        return idna.decode(host)
    except UnicodeError:  # IDNAError is one; the list has no such name
        return host
