"""Frozen data to JSON-able values and back, by annotations.

A dataclass becomes an object with the fields that differ from their defaults, a NamedTuple and a
tuple a list, an Enum its value, octets and Secrets hexadecimal text, an infinite number null, a
network its text. ``load`` builds nothing but what the annotations say, so a file cannot choose what
is made of it. A field with a default may be missing; one that is unknown is an error.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import inf, isinf
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ipsec_ike.secret import Secret

T = TypeVar("T")


class NotPlain(ValueError):
    """A value does not fit its annotation. The message names types, never values."""


def dump(value: Any) -> Any:
    """The JSON-able form of ``value``. Secrets are in it as text."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float):
        return None if isinf(value) else value
    if isinstance(value, int):  # IntEnum
        return int(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Secret):
        return value.reveal().hex()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [dump(each) for each in value]
    if isinstance(value, IPv4Network | IPv6Network):
        return str(value)
    if is_dataclass(value):
        return {
            name: dump(each)
            for name, default in _defaults(cast(type, type(value))).items()
            if default != (each := getattr(value, name)) or type(default) is not type(each)
        }
    raise NotPlain(f"no plain form of a {type(value).__name__}")


def load(kind: type[T], plain: Any) -> T:
    """What ``dump`` made, as a ``kind``. Raises NotPlain."""
    try:
        return cast(T, _load(kind, plain))
    except (TypeError, KeyError, AttributeError, ValueError) as exc:
        if isinstance(exc, NotPlain):
            raise
        # The text of the exception could hold the value.
        raise NotPlain(f"not a {kind.__name__}: {type(exc).__name__}") from None


def _load(kind: Any, plain: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _load_union(get_args(kind), plain)
    if origin is tuple:
        inner = get_args(kind)
        if not isinstance(plain, list):
            raise NotPlain("not a list")
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_load(inner[0], each) for each in plain)
        return tuple(_load(each, part) for each, part in zip(inner, plain, strict=True))
    if kind is float:
        return inf if plain is None else float(plain)
    if kind in (int, str, bool):
        if type(plain) is not kind:
            raise NotPlain(f"a {type(plain).__name__} is not a {kind.__name__}")
        return plain
    if kind is bytes:
        return bytes.fromhex(plain)
    if kind is Secret:
        return Secret(bytes.fromhex(plain))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(plain)
    if isinstance(kind, type) and issubclass(kind, tuple):  # NamedTuple
        hints = _hints(kind)
        return kind(*(_load(hint, part) for hint, part in zip(hints.values(), plain, strict=True)))
    if is_dataclass(kind):
        hints = _hints(cast(type, kind))
        return cast(type, kind)(**{name: _load(hints[name], part) for name, part in plain.items()})
    raise NotPlain(f"no {kind} in plain data")


def _load_union(kinds: tuple[Any, ...], plain: Any) -> Any:
    if plain is None and types.NoneType in kinds:
        return None
    if IPv4Network in kinds:
        return ip_network(plain)
    (kind,) = (each for each in kinds if each is not types.NoneType)
    return _load(kind, plain)


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@lru_cache(maxsize=64)
def _defaults(kind: type) -> dict[str, Any]:
    return {
        f.name: f.default_factory()
        if f.default_factory is not MISSING
        else f.default  # MISSING differs from everything
        for f in fields(kind)
    }
