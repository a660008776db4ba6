"""The clear-text guard: what may cross the WAN, counted by class, and bad weather on demand.

It sits in the forward hook of the router between the sites. Between the outer addresses of the
two gateways it lets pass IKE, ESP, ESP in UDP and the ICMP errors that path MTU discovery needs.
All the rest is dropped and counted as clear text. Without it a ping "through the tunnel" passes
with no tunnel at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

from ipsec_lab.netns import Namespace
from ipsec_lab.topology import Topology

_TABLE: Final = "lab_guard"
_NAT: Final = "lab_nat"
#: The Response flag of IKE, and where its octet is in bits from the UDP header on, by port
#: (RFC 7296 3.1; RFC 3948 2.2).
_RESPONSE: Final = 0x20
_IKE_FLAGS: Final = (("udp dport 500", 216), ("udp dport 4500 @th,64,32 0", 248))


@dataclass(frozen=True)
class GuardCounters:
    """Packets seen by the router since ``Guard`` was set up; a GSO burst counts as one.

    ``esp`` and ``esp_udp`` are what carries traffic, ``ike`` includes NAT keepalives, ``fragments``
    are non-first fragments of packets between the outer addresses. ``ah`` passes only where
    ``Guard.allow_ah`` said so: it protects without hiding anything. ``clear`` was dropped: it is
    everything else. ``weather`` was dropped by ``cut``, ``cut_ike`` or
    ``lose``.
    """

    ike: int = 0
    esp: int = 0
    esp_udp: int = 0
    icmp_error: int = 0
    fragments: int = 0
    ah: int = 0
    clear: int = 0
    weather: int = 0

    def __sub__(self, earlier: GuardCounters) -> GuardCounters:
        """What was counted since ``earlier``."""
        return GuardCounters(
            **{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        )

    @property
    def encrypted(self) -> int:
        """ESP packets, whatever carries them."""
        return self.esp + self.esp_udp


class Guard:
    """Works from construction until the topology ends, or ``remove``."""

    def __init__(self, topology: Topology) -> None:
        self._wan: Final[Namespace] = topology.wan
        self._topology: Final = topology
        sites = (topology.a, topology.b)
        outer = [i.ip for site in sites for i in site.wan_interfaces]
        self._wan.nft(
            _RULES.format(
                table=_TABLE,
                counters="\n".join(f"  counter seen_{f.name} {{}}" for f in fields(GuardCounters)),
                v4=_elements(a for a in outer if a.version == 4),
                v6=_elements(a for a in outer if a.version == 6),
            )
        )

    def counters(self) -> GuardCounters:
        """What passed and what was dropped so far."""
        return GuardCounters(
            **{
                item["counter"]["name"].removeprefix("seen_"): item["counter"]["packets"]
                for item in self._wan.nft_list("counters", "table", "inet", _TABLE)
                if "counter" in item
            }
        )

    def allow(self, address: str) -> None:
        """Take one more address of a site for an outer one."""
        outer = "outer6" if ":" in address else "outer4"
        self._wan.nft(f"add element inet {_TABLE} {outer} {{ {address} }}\n")

    def allow_ah(self) -> None:
        """Let AH between the outer addresses pass; until ``refuse_ah`` it is clear text."""
        rule = "meta l4proto ah counter name seen_ah accept"
        self._wan.nft(f"add rule inet {_TABLE} ah_allowed {rule}\n")

    def refuse_ah(self) -> None:
        """End of ``allow_ah``."""
        self._wan.nft(f"flush chain inet {_TABLE} ah_allowed\n")

    def cut(self) -> None:
        """Silently drop everything from now on: the cable is out, and nobody is told."""
        self._weather("counter name seen_weather drop")

    def cut_ike(self, *, requests: str = "ab", answers: bool = True) -> None:
        """Silently drop IKE alone, so that both sides wait for each other while traffic goes on.

        ``requests``: those from these sites; ``answers``: those from both.
        """
        self._weather(
            *(
                f"iifname to-{site} {port} @th,{flags},8 & {_RESPONSE} {test} "
                "counter name seen_weather drop"
                for port, flags in _IKE_FLAGS
                for site, test in (
                    *((site, "== 0") for site in requests),
                    *((site, "!= 0") for site in "ab" if answers),
                )
            )
        )

    def lose(self, percent: int) -> None:
        """Drop this share of all packets (1-99), by random."""
        self._weather(f"numgen random mod 100 < {percent} counter name seen_weather drop")

    def restore(self) -> None:
        """End of ``cut``, ``cut_ike`` and ``lose``."""
        self._weather()

    def masquerade(self, site: str) -> None:
        """Put site ``a`` or ``b`` behind a NAT: its UDP gets the router's address, other ports."""
        own = self._topology.site(site)
        out = {"a": "to-b", "b": "to-a"}[site]
        rules = [
            f"meta l4proto udp oifname {out} {'ip' if i.version == 4 else 'ip6'} saddr {i.ip} "
            "masquerade to :20000-29999"
            for i in own.wan_interfaces
        ]
        self._wan.nft(
            f"table inet {_NAT} {{\n  chain post {{\n"
            "    type nat hook postrouting priority srcnat; policy accept;\n    "
            + "\n    ".join(rules)
            + "\n  }\n}\n"
        )

    def end_nat(self) -> None:
        """Remove the NAT of ``masquerade``."""
        self._wan.nft(f"table inet {_NAT} {{}}\ndelete table inet {_NAT}\n")

    def calm(self) -> None:
        """``restore``, ``end_nat`` and ``refuse_ah`` at once."""
        self._wan.nft(
            f"flush chain inet {_TABLE} weather\nflush chain inet {_TABLE} ah_allowed\n"
            f"table inet {_NAT} {{}}\ndelete table inet {_NAT}\n"
        )

    def remove(self) -> None:
        """Open the router for clear text again (only negative controls want that)."""
        self._wan.nft(f"delete table inet {_TABLE}\n")

    def _weather(self, *rules: str) -> None:
        lines = [f"flush chain inet {_TABLE} weather"]
        lines += [f"add rule inet {_TABLE} weather {rule}" for rule in rules]
        self._wan.nft("\n".join(lines) + "\n")


def _elements(addresses: Iterable[object]) -> str:
    text = ", ".join(map(str, addresses))
    return f"elements = {{ {text} }}" if text else ""


# The four octets after the UDP header tell IKE from ESP on port 4500: zeros are the non-ESP marker
# (RFC 3948 2.2), a datagram of one octet is a keepalive (2.3).
_RULES: Final = """
table inet {table} {{
{counters}
  set outer4 {{ type ipv4_addr; {v4} }}
  set outer6 {{ type ipv6_addr; {v6} }}
  chain weather {{ }}
  chain ah_allowed {{ }}
  chain natt {{
    udp length 9 counter name seen_ike accept
    @th,64,32 0 counter name seen_ike accept
    counter name seen_esp_udp accept
  }}
  chain between_gateways {{
    udp dport 500 counter name seen_ike accept
    udp sport 500 counter name seen_ike accept
    udp dport 4500 goto natt
    udp sport 4500 goto natt
    meta l4proto esp counter name seen_esp accept
    jump ah_allowed
    ip frag-off & 0x1fff != 0 counter name seen_fragments accept
    frag frag-off != 0 counter name seen_fragments accept
    icmp type {{ destination-unreachable, time-exceeded }} counter name seen_icmp_error accept
    icmpv6 type 1-4 counter name seen_icmp_error accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    jump weather
    ip saddr @outer4 ip daddr @outer4 jump between_gateways
    ip6 saddr @outer6 ip6 daddr @outer6 jump between_gateways
    counter name seen_clear drop
  }}
}}
"""
