"""Policy templates on this node: what is made from them, and what holds while nothing is. Pure.

Every template has one place in the order of policies, and all that peers have from it stands there:
between what is configured before and after it. So nothing moves in the kernel when a peer comes or
goes. What they have does not overlap, the engine sees to that (``ipsec_ike.v2.templates``); here it
is told which configured traffic they must not have.

With ``level: require`` what lies within a template is dropped while no peer has it, as the last of
all policies. Nothing is dropped on the way to a default route unless the template names ports,
since that would cut the node off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ipsec_api.tunnel import (
    ObjectRef,
    TunnelConfig,
    TunnelIdentity,
    TunnelTemplate,
)
from ipsec_gateway.classify import Network
from ipsec_gateway.entries import entry_name
from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_ike.config import ChildConfig, Mode, Taken, TemplateConfig
from ipsec_ike.numbers import Protocol
from ipsec_ike.selectors import TrafficSelector

#: Reqids of what peers ask for; ``marks.allocate_reqids`` gives none of these.
REQIDS: Final = (0x60000000, 0x7FFFFFFF)


def is_generated(reqid: int) -> bool:
    """Whether it is of what a peer asked for."""
    return REQIDS[0] <= reqid <= REQIDS[1]


Selectors = tuple[TrafficSelector, ...]


def allowed_templates(identity: TunnelIdentity, tunnel: TunnelConfig) -> tuple[str, ...]:
    """The names of the templates that an identity of this tunnel may use."""
    if identity.generate == "no":
        return ()
    return tuple(entry_name(t) for t in tunnel.templates if t.group == identity.template_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One template as one peer has it. ``priority`` is the place of what is made from it."""

    ref: ObjectRef
    priority: int
    level: Level
    mode: Mode
    protocol: int
    #: Of the peer: route MTU and TCP MSS in octets, metric of the routes.
    mtu: int | None = None
    tcp_mss: int | None = None
    metric: int | None = None
    #: Whether connections skip connection tracking, our own too (True); None: they do not. What
    #: shares addresses with ``services`` is tracked in any case.
    untracked: bool | None = None
    services: tuple[Network, ...] = ()

    @property
    def name(self) -> str:
        """For comments and errors."""
        return f"{self.ref.namespace}/{self.ref.name}"


def pattern(
    tunnel: TunnelConfig, template: TunnelTemplate, priority: int, services: tuple[Network, ...]
) -> Pattern:
    """The template of a peer at its place."""
    untracked = None if tunnel.notrack == "None" else tunnel.notrack == "All"
    return Pattern(
        ref=template.source,
        priority=priority,
        level=Level(template.level),
        mode=Mode.TUNNEL if template.tunnel else Mode.TRANSPORT,
        protocol=Protocol.AH if template.protocol == "ah" else Protocol.ESP,
        mtu=tunnel.mtu,
        tcp_mss=tunnel.tcp_mss,
        metric=tunnel.metric,
        untracked=untracked,
        services=() if untracked is None else services,
    )


def template_config(
    child: ChildConfig, template: TunnelTemplate, taken: tuple[Taken, ...]
) -> TemplateConfig:
    """What the engine is told; ``child`` is the template as if it were a policy."""
    return TemplateConfig(
        name=child.name,
        local_ts=child.local_ts,
        remote_ts=child.remote_ts,
        proposals=child.proposals,
        reqids=REQIDS,
        mode=child.mode,
        lifetime=child.lifetime,
        replay_window=child.replay_window,
        handling=child.handling,
        default_route=template.default_route,
        taken=taken,
    )


class Reserved:
    """Which of the configured traffic lies where templates are. Several peers share a template."""

    def __init__(self, specs: Iterable[PolicySpec]) -> None:
        self._specs: Final = [s for s in specs if s.id.direction is PolicyDirection.OUT]
        self._known: Final[dict[tuple[Selectors, Selectors, int], tuple[Taken, ...]]] = {}

    def within(self, local: Selectors, remote: Selectors, priority: int) -> tuple[Taken, ...]:
        """That which a template with these selectors and this place must not give away."""
        key = local, remote, priority
        if key not in self._known:
            self._known[key] = tuple(
                Taken(
                    spec.id.source,
                    spec.id.destination,
                    f"policy {spec.name}",
                    spec.priority < priority,
                )
                for spec in self._specs
                # Below the template it is for what no peer has, and gives way.
                if (spec.action is not PolicyAction.DISCARD or spec.priority < priority)
                and _meet(spec.id.source, local)
                and _meet(spec.id.destination, remote)
            )
        return self._known[key]


def _meet(one: TrafficSelector, others: Selectors) -> bool:
    return any(one.narrow(other) is not None for other in others)


def closed(
    templates: Iterable[tuple[Pattern, TemplateConfig]],
    specs: Mapping[PolicyId, PolicySpec],
    priority: int,
) -> list[PolicySpec]:
    """Policies that drop what is within templates. They come last, at ``priority``; ``specs`` are
    all others."""
    found: dict[PolicyId, PolicySpec] = {}
    for pattern_, template in templates:
        if pattern_.level is Level.USE:
            continue
        for local in template.local_ts:
            for remote in template.remote_ts:
                if not _both(local, remote) or _opens(local, remote):
                    continue
                out = PolicyId(PolicyDirection.OUT, local, remote)
                if out in specs or out in found:
                    continue
                for each in (
                    out,
                    PolicyId(PolicyDirection.IN, remote, local),
                    PolicyId(PolicyDirection.FORWARD, remote, local),
                ):
                    found[each] = PolicySpec(
                        id=each, action=PolicyAction.DISCARD, priority=priority, name=pattern_.name
                    )
    return list(found.values())


def _both(local: TrafficSelector, remote: TrafficSelector) -> bool:
    """One family and one protocol: a packet can match both."""
    protocols = {local.protocol, remote.protocol} - {0}
    return len(local.start) == len(remote.start) and len(protocols) < 2


def _opens(local: TrafficSelector, remote: TrafficSelector) -> bool:
    """The way to a default route, whatever the ports."""
    whole = not any(remote.start) and remote.end == b"\xff" * len(remote.end)
    return whole and local.any_port and remote.any_port
