"""Two whole gateways with one tunnel between the LANs, from manifests, to send a stream through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ipsec_lab import manifests
from ipsec_lab.bench_charon import PSK
from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.gateway import GatewayProcess
from ipsec_lab.topology import Topology

#: AES-128-GCM for both kinds of SA, as charon has it in the same bench.
_PROFILE: Final = {"encAlgorithms": ["aes128-gcm"], "dhGroups": ["x25519"], "prf": "sha256"}
_PROPOSAL: Final = {"encAlgorithms": ["aes128-gcm"]}


class GatewayPair:
    """``kube-ipsec gateway`` at both sites."""

    def __init__(self, gateways: dict[str, GatewayProcess]) -> None:
        self._gateways: Final = gateways

    def usage(self, name: str) -> Usage:
        """What the gateway of site ``a`` or ``b`` and its packet processes have used."""
        return usage(self._gateways[name].pid)


@contextmanager
def gateways(topology: Topology, folder: Path) -> Iterator[GatewayPair]:
    """Both with the tunnel up. Raises LabError where it does not come up."""
    started: dict[str, GatewayProcess] = {}
    try:
        _start(topology, folder, started)
        for gateway in started.values():
            gateway.wait_condition("bench", timeout=20)
        yield GatewayPair(started)
    finally:
        for gateway in started.values():
            gateway.kill()


def _start(topology: Topology, folder: Path, started: dict[str, GatewayProcess]) -> None:
    for name, other in (("b", "a"), ("a", "b")):
        own, far = topology.site(name), topology.site(other)
        directory = folder / name
        directory.mkdir()
        gateway = GatewayProcess(topology, topology.gateway(name), directory)
        gateway.apply(
            manifests.secret("bench-psk", PSK),
            manifests.policy(
                "lans",
                peer_name="bench",
                selectors=[(own.lans[0], far.lans[0])],
                proposal=_PROPOSAL,
            ),
            manifests.peer(
                "bench",
                address=far.wan_address(),
                psk_from="bench-psk",
                localAddress=own.wan_address(),
                passive=name == "b",
                profile={**_PROFILE, "forceEncapsulation": True},
            ),
        )
        started[name] = gateway
        gateway.start()
