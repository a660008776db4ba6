"""Why the kernel refused something, and what to do about it, in words."""

from __future__ import annotations

import errno
from typing import Final

from ipsec_gateway.ipsec.base import PolicySpec
from ipsec_gateway.ipsec.xfrm_algorithms import names
from ipsec_gateway.ipsec.xfrm_netlink import XfrmError
from ipsec_gateway.ipsec.xfrm_policy import IP_PROTOCOL
from ipsec_ike.actions import SaSpec
from ipsec_ike.numbers import Protocol

#: Kernel modules by (IP protocol, IPv6).
MODULES: Final = {
    (50, False): "esp4",
    (50, True): "esp6",
    (51, False): "ah4",
    (51, True): "ah6",
}


def policy_title(spec: PolicySpec) -> str:
    """Which policy it is."""
    where = f"{spec.id.source} to {spec.id.destination} ({spec.id.direction.value})"
    return f"policy {where} of {spec.name}" if spec.name else f"policy {where}"


def policy_cause(error: XfrmError) -> str:
    """Why the kernel refused a policy."""
    if error.number == errno.EEXIST:
        return (
            "another program has a policy for the same traffic (`ip xfrm policy` shows it): "
            "stop it, or take the traffic out of one of the two"
        )
    return _general(error)


def sa_cause(error: XfrmError, spec: SaSpec) -> str:
    """Why the kernel refused an SA, and what it lacks."""
    protocol = IP_PROTOCOL[Protocol(spec.id.protocol)]
    six = ":" in spec.destination.address
    if error.number == errno.EPROTONOSUPPORT:
        name, version = Protocol(spec.id.protocol).name, 6 if six else 4
        module = MODULES[protocol, six]
        return f"EPROTONOSUPPORT: this kernel has no {name} for IPv{version} (module {module})"
    if error.number == errno.ENOSYS:
        wanted = names(None if protocol == 51 else spec.encryption, spec.integrity)
        return f"ENOSYS: this kernel lacks {wanted} ({error.detail or 'see /proc/crypto'})"
    if error.number == errno.EEXIST:
        return f"EEXIST: there is an SA with this SPI to {spec.destination.address} already"
    return _general(error)


def _general(error: XfrmError) -> str:
    if error.number in (errno.EPERM, errno.EACCES):
        return f"{error}: run it as root, or with CAP_NET_ADMIN"
    if error.number in (errno.ENOMEM, errno.ENOBUFS):
        return f"{error}: the kernel is out of memory"
    return str(error)
