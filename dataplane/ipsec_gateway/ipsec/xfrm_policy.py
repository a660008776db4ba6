"""Entries of the SPD to the kernel's policies and back. Pure.

==================  =====================================================================
entry               policy
==================  =====================================================================
discard             block
none                allow, without templates
encrypt             allow, with one template for each protocol; ``use`` makes it optional
encrypt, tunnel,    block: the kernel needs to know where a tunnel leads before it can ask
no far end known    for one
use, tunnel, out    as above while there is an SA, else allow: the kernel has no optional
                    tunnels outwards
==================  =====================================================================

Levels are also kept in the ``share`` field of the templates, which the kernel does not look at.

Templates for inbound packets name no addresses, so that a peer that moves needs no new policy; the
reqid says whose SA it must have been. ICMP errors about packets that a policy covers may use its
SAs whatever addresses they have themselves (RFC 4301 6, XFRM_POLICY_ICMP).

A transport policy for all of IPv6 between two hosts on one link would cover Neighbor Discovery, and
then nothing could ever be sent to the peer, IKE included. So the five messages of it (RFC 4861) are
let through before such a policy, between these two hosts only.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Final

from ipsec_gateway.ipsec.base import Level, PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.ipsec.xfrm_attributes import Template, family_of
from ipsec_gateway.ipsec.xfrm_messages import Policy, Selector
from ipsec_gateway.ipsec.xfrm_numbers import Dir, KernelMode, PolicyFlag, Share, Verdict
from ipsec_gateway.ipsec.xfrm_selector import kernel_selectors, masks, traffic_selectors
from ipsec_ike.config import Mode
from ipsec_ike.numbers import Protocol

#: The kernel's priority of the first entry of the list, less two. What an administrator wants to
#: come before ours gets a lower one.
PRIORITY_BASE: Final = 0x1000
#: Policies of ours have this bit in their index, by which a restarted gateway knows them.
INDEX_BASE: Final = 0x40000000

#: What identifies a policy in the kernel: direction, selector, if_id.
Key = tuple[Dir, Selector, int]
#: (ours, the peer's) outer address.
Ends = tuple[str, str]

IP_PROTOCOL: Final = {Protocol.ESP: 50, Protocol.AH: 51}
_DIRECTIONS: Final = {
    PolicyDirection.OUT: Dir.OUT,
    PolicyDirection.IN: Dir.IN,
    PolicyDirection.FORWARD: Dir.FORWARD,
}
_MODES: Final = {Mode.TUNNEL: KernelMode.TUNNEL, Mode.TRANSPORT: KernelMode.TRANSPORT}
_SHARES: Final = {
    Level.REQUIRE: Share.ANY,
    Level.USE: Share.SESSION,
    Level.UNIQUE: Share.UNIQUE,
}
_ICMPV6: Final = 58
#: Router Solicitation to Redirect.
_DISCOVERY: Final = masks(133, 137, 16)


def key_of(policy: Policy) -> Key:
    """What finds it in the kernel."""
    return policy.direction, policy.selector, policy.if_id


def owned(policy: Policy) -> bool:
    """Whether this or an earlier gateway of this node made it."""
    return bool(policy.index & INDEX_BASE)


def kernel_policies(spec: PolicySpec, ends: Ends | None) -> list[Policy]:
    """What ``spec`` is in the kernel, with index 0. Raises DataplaneError.

    ``ends`` are those of the live SA, None where there is none: then ``spec`` itself may know.
    """
    if ends is None and spec.remote and spec.level is not Level.USE:
        ends = spec.local, spec.remote
    verdict, templates = _treatment(spec, ends)
    direction = _DIRECTIONS[spec.id.direction]
    policies = [
        Policy(
            selector=selector,
            direction=direction,
            priority=PRIORITY_BASE + 2 * spec.priority,
            verdict=verdict,
            flags=PolicyFlag.ICMP,
            templates=templates,
            if_id=spec.id.interface,
        )
        for selector in kernel_selectors(spec.id.source, spec.id.destination)
    ]
    if spec.action is PolicyAction.ENCRYPT and spec.mode is Mode.TRANSPORT:
        policies += [e for policy in policies for e in _exemptions(policy)]
    return policies


def _treatment(spec: PolicySpec, ends: Ends | None) -> tuple[Verdict, tuple[Template, ...]]:
    if spec.action is PolicyAction.DISCARD:
        return Verdict.BLOCK, ()
    if spec.action is PolicyAction.NONE:
        return Verdict.ALLOW, ()
    outward = spec.id.direction is PolicyDirection.OUT
    inner = int(socket.AF_INET6 if len(spec.id.source.start) == 16 else socket.AF_INET)
    tunnel = spec.mode is Mode.TUNNEL
    if tunnel and outward and ends is None:
        return (Verdict.ALLOW if spec.level is Level.USE else Verdict.BLOCK), ()
    named = ends if tunnel and outward else None
    first = Template(
        protocol=IP_PROTOCOL[Protocol(spec.protocols[0])],
        reqid=spec.reqid,
        mode=_MODES[spec.mode],
        family=inner if named is None else family_of(named[1]),
        source="" if named is None else named[0],
        destination="" if named is None else named[1],
        optional=spec.level is Level.USE and named is None,
        share=_SHARES[spec.level],
    )
    # The outer ones protect what the first one made: a packet between its ends.
    rest = (
        replace(
            first,
            protocol=IP_PROTOCOL[Protocol(each)],
            mode=KernelMode.TRANSPORT,
            source="",
            destination="",
        )
        for each in spec.protocols[1:]
    )
    return Verdict.ALLOW, (first, *rest)


def _exemptions(policy: Policy) -> list[Policy]:
    selector = policy.selector
    if selector.family != socket.AF_INET6 or selector.protocol not in (0, _ICMPV6):
        return []
    if selector.source_mask:
        return []
    return [
        replace(
            policy,
            selector=replace(selector, protocol=_ICMPV6, source_port=value, source_mask=mask),
            priority=policy.priority - 1,
            templates=(),
        )
        for value, mask in _DISCOVERY
    ]


def exempts(exemption: Policy, policy: Policy) -> bool:
    """Whether ``exemption`` is one of those that go with ``policy``."""
    one, two = exemption.selector, policy.selector
    return (
        exemption.priority == policy.priority - 1
        and (exemption.direction, exemption.if_id) == (policy.direction, policy.if_id)
        and (one.source, one.destination) == (two.source, two.destination)
    )


def policy_spec(policy: Policy) -> PolicySpec | None:
    """What a policy of ours says; None for an exemption, which goes with its transport policy.

    ``name`` is nowhere in the kernel.
    """
    pair = traffic_selectors(policy.selector)
    if pair is None or policy.priority % 2:
        return None
    direction = next(d for d, kind in _DIRECTIONS.items() if kind is policy.direction)
    blank = PolicySpec(
        id=PolicyId(direction, *pair, interface=policy.if_id),
        action=PolicyAction.NONE if policy.verdict is Verdict.ALLOW else PolicyAction.DISCARD,
        priority=(policy.priority - PRIORITY_BASE) // 2,
    )
    if not policy.templates:
        return blank
    first = policy.templates[0]
    levels = {share: level for level, share in _SHARES.items()}
    numbers = {number: protocol for protocol, number in IP_PROTOCOL.items()}
    return replace(
        blank,
        action=PolicyAction.ENCRYPT,
        level=levels.get(Share(first.share), Level.REQUIRE),
        reqid=first.reqid,
        mode=Mode.TUNNEL if first.mode == KernelMode.TUNNEL else Mode.TRANSPORT,
        protocols=tuple(numbers[each.protocol] for each in policy.templates),
        local=first.source,
        remote=first.destination,
    )
