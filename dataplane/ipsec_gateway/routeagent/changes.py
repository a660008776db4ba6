"""From the routes and rules that a node has to those that it should have, as lines for ip. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipsec_gateway.routeagent.plan import PROTOCOL, Route, Settings, Wanted


@dataclass(frozen=True, slots=True)
class Changes:
    """Lines for ``ip -batch`` by IP version: first ``add``, then ``delete``."""

    add: Mapping[int, tuple[str, ...]]
    delete: Mapping[int, tuple[str, ...]]

    def __bool__(self) -> bool:
        return any(self.add.values()) or any(self.delete.values())


def rule_arguments(settings: Settings) -> str:
    """What follows ``ip rule add`` or ``delete``."""
    return (
        f"pref {settings.table} fwmark 0/{settings.mask:#x} lookup {settings.table}"
        f" protocol {PROTOCOL}"
    )


def changes(
    wanted: Wanted,
    routes: Iterable[Route],
    rules: Iterable[int],
    settings: Settings,
) -> Changes:
    """From the routes and rules that are there to those of ``wanted``.

    A destination has one route: another one replaces it at once, so that there is no moment without
    either. Refusals come first, the rule comes after the routes and goes before them.
    """
    add: dict[int, tuple[str, ...]] = {}
    delete: dict[int, tuple[str, ...]] = {}
    have, present = set(routes), set(rules)
    for version in (4, 6):
        new = {r for r in wanted.routes if r.version == version} - have
        places = {r.destination for r in wanted.routes}
        gone = {r for r in have if r.version == version and r.destination not in places}
        rule = rule_arguments(settings)
        add[version] = (
            *(
                f"route replace {r.arguments(settings.table)}"
                for r in sorted(new, key=lambda r: (r.kind == "unicast", r))
            ),
            *((f"rule add {rule}",) if version in wanted.rules - present else ()),
        )
        delete[version] = (
            *((f"rule delete {rule}",) if version in present - wanted.rules else ()),
            *(f"route delete {r.arguments(settings.table)}" for r in sorted(gone)),
        )
    return Changes(add, delete)
