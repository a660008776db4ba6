"""Two of our gateways on one LAN segment, with nothing between them but a wire.

Their outer addresses are neighbours: ARP and neighbour discovery have to work whatever is
protected, and there is no router whose guard could count, so the sniffer looks at the wire itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipsec_lab import manifests
from ipsec_lab.kernel_rig import SlowGateway, xfrm_states
from ipsec_lab.netns import Namespace
from ipsec_lab.sniffer import Sniffer
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until

OUTER = ("192.0.2.1", "192.0.2.2")
OUTER6 = ("2001:db8::1", "2001:db8::2")
INNER = ("10.1.0.1", "10.2.0.1")


@dataclass
class Segment:
    """Both ends; ``start`` runs a gateway with these documents in one of them."""

    ends: tuple[Namespace, Namespace]
    start: Callable[[int, list[manifests.Document]], SlowGateway]


@pytest.fixture
def segment(kernel_topology: Topology, tmp_path: Path) -> Iterator[Segment]:
    a, b = Namespace("seg-a"), Namespace("seg-b")
    gateways: list[SlowGateway] = []

    def start(index: int, documents: list[manifests.Document]) -> SlowGateway:
        directory = tmp_path / f"gateway-{index}"
        directory.mkdir()
        gateway = SlowGateway(kernel_topology, (a, b)[index], directory)
        gateways.append(gateway)
        gateway.apply(*documents)
        gateway.start()
        return gateway

    try:
        a.ip(f"link add wire type veth peer name wire netns {b.name}")
        for index, namespace in enumerate((a, b)):
            namespace.ip(
                f"address add {OUTER[index]}/24 dev wire",
                f"address add {OUTER6[index]}/64 dev wire nodad",
                f"address add {INNER[index]}/24 dev lo",
                "link set dev wire up",
                f"route add 10.{2 - index}.0.0/24 via {OUTER[1 - index]} src {INNER[index]}",
            )
        yield Segment((a, b), start)
    finally:
        for gateway in gateways:
            gateway.kill()
        a.delete()
        b.delete()


def documents(
    index: int, ends: tuple[str, str], pair: tuple[str, str], **policy
) -> list[manifests.Document]:
    """Of the end ``index``; ``ends`` and ``pair`` are those of both, end 0 first."""
    other = 1 - index
    return [
        manifests.secret("key", b"secret of the segment"),
        manifests.policy(
            "all", peer_name="other", selectors=[(pair[index], pair[other])], **policy
        ),
        manifests.peer(
            "other",
            address=ends[other],
            psk_from="key",
            localAddress=ends[index],
            passive=index == 1,
        ),
    ]


def test_tunnel_between_neighbours(segment: Segment) -> None:
    a, b = segment.ends
    with Sniffer(b) as sniffer:
        for index in (1, 0):
            segment.start(index, documents(index, OUTER, ("10.1.0.0/24", "10.2.0.0/24")))
        ping_until(a, INNER[1], source=INNER[0], timeout=100)
        ping_until(b, INNER[0], source=INNER[1], timeout=60)
        # What is not protected goes as it is, and is neither redirected nor dropped.
        assert ping(a, OUTER[1], count=2, wait=5).received == 2
    seen = sniffer.sighting()
    assert seen.encrypted >= 2
    assert {each.mode for each in xfrm_states(a)} == {"tunnel"}


def test_transport_of_ipv6_leaves_neighbour_discovery_alone(segment: Segment) -> None:
    """All of IPv6 between two neighbours is protected: their discovery of each other is not."""
    a, b = segment.ends
    pair = (f"{OUTER6[0]}/128", f"{OUTER6[1]}/128")
    with Sniffer(b) as sniffer:
        for index in (1, 0):
            segment.start(index, documents(index, OUTER6, pair, tunnel=False))
        ping_until(a, OUTER6[1], timeout=100)
        # Forget who is where: solicitations and answers go to protected addresses.
        for namespace in segment.ends:
            namespace.ip("neigh flush dev wire")
        assert ping(b, OUTER6[0], count=3, wait=10).lost == ()
    seen = sniffer.sighting()
    assert seen.marked == 0, seen.first_marked
    assert {each.mode for each in xfrm_states(a)} == {"transport"}
