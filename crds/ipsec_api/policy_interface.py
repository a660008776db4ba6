"""The interface of an IPsecPolicy with ``mode: routed``, and the rules that go with the mode."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from ipsec_api import cel
from ipsec_api.rules import ListOf, Rule, SpecModel
from ipsec_api.scalars import Cidr, is_cidr

_NAME: Final = "^[A-Za-z0-9][-A-Za-z0-9_.]{0,14}$"
#: What means something else to the kernel or to the gateway.
_TAKEN: Final = ("all", "default", "kipsec0", "lo")

InterfaceName = Annotated[
    str,
    Field(max_length=15),
    Rule(
        cel=f"self.matches('{_NAME}') && !(self in {cel.names(_TAKEN)})",
        message="not a name for an interface: write up to 15 letters, digits, dots, dashes and"
        f" underscores, and not {', '.join(_TAKEN)}",
        check=lambda v: re.fullmatch(_NAME, v) is not None and v not in _TAKEN,
    ),
]

InterfaceAddress = Annotated[
    str,
    Field(max_length=43),
    Rule(
        cel="isCIDR(self)",
        message="not an address with its prefix length: write it such as 169.254.10.1/30 or"
        " fd00:a::1/64",
        check=is_cidr,
    ),
    AfterValidator(lambda text: str(ipaddress.ip_interface(text))),
]


class PolicyInterface(SpecModel):
    """The network interface of a routed policy."""

    name: InterfaceName | None = None
    """Its name on the gateway; made from the name of the policy where absent."""

    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=16), ListOf("set")] = ()
    """Addresses with prefix length."""

    mtu: Annotated[int, Field(ge=576, le=9000)] | None = None
    """MTU in octets; computed from the SAs where absent."""

    routes: Annotated[tuple[Cidr, ...], Field(max_length=100), ListOf("set")] = ()
    """Networks that are routed into it. Others are up to you or a routing daemon."""

    RULES = (
        Rule(
            cel="!has(self.mtu) || self.mtu >= 1280"
            " || ((!has(self.addresses) || !self.addresses.exists(a, a.contains(':')))"
            " && (!has(self.routes) || !self.routes.exists(r, r.contains(':'))))",
            message="IPv6 needs an MTU of 1280 or more: raise it, or remove the IPv6 addresses and"
            " routes",
            check=lambda i: (
                i.mtu is None or i.mtu >= 1280 or not any(":" in t for t in i.addresses + i.routes)
            ),
            field="mtu",
        ),
    )


def _ordinary(spec: Any) -> bool:
    return (spec.dscp, spec.ecn, spec.df) == ("Copy", "Copy", "Copy")


#: Of IPsecPolicySpec.
MODE_RULES: Final = (
    Rule(
        cel="!has(self.interface) || self.mode == 'routed'",
        message="an interface goes with mode: routed: set it, or remove interface",
        check=lambda s: s.interface is None or s.mode == "routed",
        field="interface",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel="self.mode != 'routed' || (self.action == 'encrypt' && self.tunnel && !self.template"
        " && self.level != 'use')",
        message="what is routed into an interface is encrypted in tunnel mode or dropped: remove"
        " action, tunnel, template and level: use, or set mode: policy",
        check=lambda s: (
            s.mode != "routed"
            or (s.action == "encrypt" and s.tunnel and not s.template and s.level != "use")
        ),
        field="mode",
    ),
    Rule(
        cel="(self.dscp == 'Copy' && self.ecn == 'Copy' && self.df == 'Copy') || (self.tunnel"
        " && self.action == 'encrypt')",
        message="only tunnel mode has an outer header: remove dscp, ecn and df",
        check=lambda s: _ordinary(s) or (s.tunnel and s.action == "encrypt"),
        field="dscp",
        reason="FieldValueForbidden",
    ),
)
