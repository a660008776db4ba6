"""Interfaces of routed policies: their names, of which each is one policy's. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from ipsec_api.credentials import Fault
from ipsec_api.policy import IPsecPolicySpec
from ipsec_api.policy_interface import PolicyInterface
from ipsec_api.tunnel import ObjectRef, TunnelInterface

#: Of names that nobody has chosen.
PREFIX: Final = "kx-"
_READABLE: Final = 7


def interface_name(ref: ObjectRef) -> str:
    """``kx-``, up to 7 letters of the policy's name, and 4 that make it one of its own.

    It depends on nothing but namespace and name, so that it stays the same.
    """
    digest = hashlib.blake2b(f"{ref.namespace}/{ref.name}".encode(), digest_size=2).hexdigest()
    return f"{PREFIX}{ref.name[:_READABLE].replace('.', '-').rstrip('-')}-{digest}"


def interface_of(ref: ObjectRef, spec: IPsecPolicySpec | None) -> TunnelInterface | None:
    """The interface that a policy asks for."""
    if spec is None or spec.mode != "routed":
        return None
    asked = spec.interface or PolicyInterface()
    return TunnelInterface(
        name=asked.name or interface_name(ref),
        addresses=asked.addresses,
        mtu=asked.mtu,
        routes=asked.routes,
    )


@dataclass(slots=True)
class InterfaceNames:
    """Who has which name. The policy that asks first, the oldest one, has it."""

    _owners: dict[str, ObjectRef] = field(default_factory=dict)

    def take(self, ref: ObjectRef, spec: IPsecPolicySpec) -> list[Fault]:
        """What is wrong with the name that a policy wants."""
        interface = interface_of(ref, spec)
        if interface is None:
            return []
        owner = self._owners.setdefault(interface.name, ref)
        if owner == ref:
            return []
        text = f"{owner} has an interface {interface.name} already: set another name"
        return [("spec.interface.name", "Overlap", text)]
