"""What a changed TunnelConfig costs: nothing, new SAs for some traffic, or a new IKE SA. Pure.

===============  ===================================================================================
class            what changed, and what the gateway does about it
===============  ===================================================================================
Hot              lifetimes, MTU, routes, NAT, the probe: takes effect in place
Rekey            selectors, algorithms or mode of a policy: its CHILD_SAs are made anew first, then
                 the old ones go
Reestablish      credentials, identities, IKE algorithms, addresses: a new IKE SA is made first,
                 then the old one goes
===============  ===================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from ipsec_api.tunnel import TunnelConfig, TunnelPolicy

Class = Literal["Hot", "Rekey", "Reestablish"]

#: Fields of TunnelConfig that an IKE SA hangs on, as the engine sees it (v2/reconfigure.py).
_IKE: Final = (
    "addresses",
    "port",
    "local_address",
    "ike_proposals",
    "force_encapsulation",
    "identities",
)
#: Fields of TunnelPolicy that take effect in place.
_COUNTED: Final = frozenset({"lifetime", "lifebytes", "lifepackets", "replay_window", "priority"})
_NAMES: Final = {"psk": "the pre-shared key", "identities": "identities or keys"}


@dataclass(frozen=True, slots=True)
class Change:
    """``fields`` names what changed, never a value."""

    kind: Class
    fields: tuple[str, ...]

    def __str__(self) -> str:
        effect = {
            "Hot": "takes effect in place",
            "Rekey": "its SAs are replaced, make before break",
            "Reestablish": "a new IKE SA replaces the old one, make before break",
        }[self.kind]
        return f"changed {', '.join(self.fields)}: {effect}"


def classify(before: TunnelConfig, after: TunnelConfig) -> Change | None:
    """None where gateways have nothing to do."""
    changed = [
        name
        for name in TunnelConfig.model_fields
        if name not in ("source", "policies") and getattr(before, name) != getattr(after, name)
    ]
    heavy = [
        name
        for name in changed
        if name in _IKE and (name != "identities" or _keys(before) != _keys(after))
    ]
    old, new = _children(before), _children(after)
    rekeyed = old != new
    policies_changed = rekeyed or _policies(before) != _policies(after)
    fields = (*changed, *(("policies",) if policies_changed else ()))
    if not fields:
        return None
    kind: Class = "Reestablish" if heavy else "Rekey" if rekeyed else "Hot"
    return Change(kind, tuple(_words(name) for name in fields))


def _keys(config: TunnelConfig) -> list[Any]:
    # The previous key is accepted besides; it ends nothing.
    return [identity.model_copy(update={"psk_previous": None}) for identity in config.identities]


def _policies(config: TunnelConfig) -> list[dict[str, Any]]:
    return [policy.model_dump(exclude={"source"}) for policy in config.policies]


def _children(config: TunnelConfig) -> list[dict[str, Any]]:
    """What CHILD_SAs hang on, without order."""
    dumps = [
        (_name(policy), policy.model_dump(exclude={"source", *_COUNTED}))
        for policy in config.policies
    ]
    return [dump | {"name": name} for name, dump in sorted(dumps, key=lambda pair: pair[0])]


def _name(policy: TunnelPolicy) -> tuple[str, str, int]:
    return policy.source.kind, policy.source.name, policy.index


def _words(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))
