"""Services that only what came out of an SA may reach (``requireIPsec`` of an IPsecPeer)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from ipsec_api.policy import WITH_PORTS, PortNumber, Protocol, protocol_number
from ipsec_api.rules import Rule, SpecModel
from ipsec_api.tunnel import TunnelService


class Service(SpecModel):
    """A protocol, or some of its ports."""

    protocol: Protocol
    """Protocol by name, or its number in quotes."""

    port: PortNumber | None = None
    """Port, or the first of a range; all of them where absent."""

    end_port: PortNumber | None = None
    """Last port of a range."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(self.protocol in ['all', '0', 'esp', 'ah', '50', '51'])",
            message="this would cut the gateway off: name the protocol of a service, such as udp"
            " with port 1701, or gre",
            check=lambda s: s.protocol not in ("all", "0", "esp", "ah", "50", "51"),
            field="protocol",
        ),
        Rule(
            cel=f"!(has(self.port) || has(self.endPort)) || self.protocol in {list(WITH_PORTS)!r}",
            message="this protocol has no ports: remove port and endPort, or name tcp, udp or sctp",
            check=lambda s: (s.port is None and s.end_port is None) or s.protocol in WITH_PORTS,
            field="port",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="!has(self.endPort) || (has(self.port) && self.port <= self.endPort)",
            message="endPort is the last port of a range: set port to the first one",
            check=lambda s: s.end_port is None or (s.port is not None and s.port <= s.end_port),
            field="endPort",
        ),
    )


def required(services: Iterable[Service]) -> tuple[TunnelService, ...]:
    """The same for the gateway."""
    return tuple(
        TunnelService(
            protocol=protocol_number(each.protocol),
            ports=None if each.port is None else (each.port, each.end_port or each.port),
        )
        for each in services
    )
