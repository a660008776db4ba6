"""From what is to what should be: differences, in the order in which they are safe to carry out.

Everything here is pure. Nothing is rebuilt: the same desired state twice gives nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipsec_gateway.ipsec.base import PolicyId, PolicySpec
from ipsec_gateway.routing import Route, Routing, Rule


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """Arguments for ``IpsecBackend.put_policies``: puts first, in order of priority."""

    put: tuple[PolicySpec, ...] = ()
    delete: tuple[PolicyId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.delete)


def policies(desired: Iterable[PolicySpec], actual: Mapping[PolicyId, PolicySpec]) -> PolicyPlan:
    """What changes in the SPD."""
    wanted = {spec.id: spec for spec in desired}
    put = [spec for key, spec in wanted.items() if actual.get(key) != spec]
    return PolicyPlan(
        tuple(sorted(put, key=lambda spec: spec.priority)),
        tuple(key for key in actual if key not in wanted),
    )


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """Commands for ``ip -batch``, by IP version: ``add`` are safe at any time, then ``delete``."""

    add: Mapping[int, tuple[str, ...]]
    delete: Mapping[int, tuple[str, ...]]

    def __bool__(self) -> bool:
        return any(self.add.values()) or any(self.delete.values())


def routing(desired: Routing, actual: Routing) -> RoutingPlan:
    """What changes in routes and rules.

    Routes are there before the rules that lead to them and go after them. A route that only changes
    its hint or MTU is replaced in place, one with another metric comes before the old one goes; the
    twin that refuses is never missing.
    """
    add: dict[int, tuple[str, ...]] = {}
    delete: dict[int, tuple[str, ...]] = {}
    for version in (4, 6):
        routes = {r for r in desired.routes if r.version == version}
        rules = {r for r in desired.rules if r.version == version}
        old_routes = {r for r in actual.routes if r.version == version}
        old_rules = {r for r in actual.rules if r.version == version}
        replaced = {_place(r) for r in routes - old_routes}
        add[version] = (
            *(_route("replace", r) for r in _fallback_first(routes - old_routes)),
            *(_rule("add", r) for r in sorted(rules - old_rules)),
        )
        gone = [r for r in old_routes - routes if _place(r) not in replaced]
        delete[version] = (
            *(_rule("delete", r) for r in sorted(old_rules - rules)),
            *(_route("delete", r) for r in reversed(_fallback_first(gone))),
        )
    return RoutingPlan(add, delete)


def _place(route: Route) -> tuple[int, str, bool, int]:
    return route.table, route.destination, bool(route.device), route.metric


def _fallback_first(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda r: (bool(r.device), r))


def _route(verb: str, route: Route) -> str:
    return f"route {verb} {route.arguments()}"


def _rule(verb: str, rule: Rule) -> str:
    return f"rule {verb} {rule.arguments()}"
