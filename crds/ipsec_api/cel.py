"""Pieces of CEL that more than one rule needs.

A rule between fields also runs when one of the fields is wrong by itself, and ``cidr()`` of
something that is no CIDR ends it with an error of its own. These look at the text, so that a user
reads one message.
"""

from __future__ import annotations

from collections.abc import Iterable


def names(values: Iterable[str]) -> str:
    """A list of strings."""
    return "[" + ", ".join(f"'{value}'" for value in sorted(values)) + "]"


def same_family(a: str, b: str) -> str:
    """Both are IPv4, or both IPv6."""
    return f"{a}.contains(':') == {b}.contains(':')"


def is_default_route(cidr: str) -> str:
    """0.0.0.0/0 or ::/0."""
    return f"{cidr}.endsWith('/0')"


def is_host(cidr: str) -> str:
    """One address."""
    return f"{cidr}.endsWith({cidr}.contains(':') ? '/128' : '/32')"


def same_length(a: str, b: str) -> str:
    """Prefixes of one length."""
    return f"(!isCIDR({a}) || !isCIDR({b}) || cidr({a}).prefixLength() == cidr({b}).prefixLength())"
