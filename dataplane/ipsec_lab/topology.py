"""Two sites and what lies between them, out of network namespaces and veth pairs.

::

      lan-a            gw-a                 wan                gw-b            lan-b
    +--------+     +-----------+      +--------------+     +-----------+     +--------+
    |  host  |eth0 |lan0   wan0|   to-a    router    to-b  |wan0   lan0| eth0|  host  |
    | .2     |-----|.1         |------|  guard, NAT, |-----|         .1|-----|     .2 |
    +--------+     +-----------+      |  loss, cut,  |     +-----------+     +--------+
    10.1.0.0/24    192.0.2.1/24 .254  |  sniffer     | .254 198.51.100.1/24  10.2.0.0/24
    fd00:1::/64    2001:db8:a::1 ::fe +--------------+ ::fe 2001:db8:b::1    fd00:2::/64

The router knows the way to the LANs too, so that without IPsec the sites talk in clear text: only
the guard (``ipsec_lab.guard``) stops that, and only then does a passed ping prove anything.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import IO, Final, Self

from ipsec_lab.netns import Namespace, end_process, sweep

Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Site:
    """One side. ``wan`` are interface addresses of the gateway (address/length), ``lans`` networks.

    In each LAN the gateway has the first address and the host the second.
    """

    name: str
    wan: tuple[str, ...]
    lans: tuple[str, ...]

    @property
    def wan_interfaces(self) -> tuple[Interface, ...]:
        return tuple(ipaddress.ip_interface(text) for text in self.wan)

    def wan_address(self, version: int = 4) -> str:
        """The gateway's outer address of one IP version."""
        return next(str(i.ip) for i in self.wan_interfaces if i.version == version)

    def router(self, index: int) -> Interface:
        """The address of the wan router in the network of ``wan[index]``: .254 or ::fe."""
        own = self.wan_interfaces[index]
        host = own.network.network_address + 254
        return ipaddress.ip_interface(f"{host}/{own.network.prefixlen}")

    def gateway(self, lan: int = 0) -> str:
        """The gateway's address in a LAN."""
        return str(ipaddress.ip_network(self.lans[lan]).network_address + 1)

    def host(self, lan: int = 0) -> str:
        """The host's address in a LAN."""
        return str(ipaddress.ip_network(self.lans[lan]).network_address + 2)


#: What examples/site-to-site describes: a is east, b is west.
SITE_A: Final = Site("a", ("192.0.2.1/24", "2001:db8:a::1/64"), ("10.1.0.0/24", "fd00:1::/64"))
SITE_B: Final = Site("b", ("198.51.100.1/24", "2001:db8:b::1/64"), ("10.2.0.0/24", "fd00:2::/64"))


class Topology:
    """The five namespaces. A context manager: on exit every process it started is ended, by pid,
    and every namespace removed.

    ``mtu`` is that of the two WAN links, in octets. Needs CAP_NET_ADMIN (root, or a user namespace:
    ``ipsec_lab.userns``). Raises LabError where ip or the kernel refuses.
    """

    def __init__(self, a: Site = SITE_A, b: Site = SITE_B, *, mtu: int = 1500) -> None:
        self.a: Final = a
        self.b: Final = b
        self.mtu: Final = mtu
        self._namespaces: list[Namespace] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        sweep()
        try:
            self.lan_a = self._namespace("lan-a")
            self.gw_a = self._namespace("gw-a")
            self.wan = self._namespace("wan")
            self.gw_b = self._namespace("gw-b")
            self.lan_b = self._namespace("lan-b")
            self._forwarding(self.wan)
            for site, lan, gw, port in (
                (self.a, self.lan_a, self.gw_a, "to-a"),
                (self.b, self.lan_b, self.gw_b, "to-b"),
            ):
                self._forwarding(gw)
                self._connect_lan(site, lan, gw)
                self._connect_wan(site, gw, port)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what was started in here and remove the namespaces. Safe to call twice."""
        for process in reversed(self._processes):
            end_process(process)
        self._processes.clear()
        for namespace in self._namespaces:
            namespace.delete()
        self._namespaces.clear()

    def site(self, name: str) -> Site:
        """Site ``a`` or ``b``."""
        return {"a": self.a, "b": self.b}[name]

    def wan_neighbour(self, name: str, version: int = 4) -> str:
        """The wan router's address on the link of site ``a`` or ``b``."""
        site = self.site(name)
        index = next(i for i, own in enumerate(site.wan_interfaces) if own.version == version)
        return str(site.router(index).ip)

    def gateway(self, name: str) -> Namespace:
        """The gateway's namespace of site ``a`` or ``b``."""
        return {"a": self.gw_a, "b": self.gw_b}[name]

    def lan(self, name: str) -> Namespace:
        """The LAN host's namespace of site ``a`` or ``b``."""
        return {"a": self.lan_a, "b": self.lan_b}[name]

    def start(
        self,
        namespace: Namespace,
        argv: Sequence[str],
        *,
        log: IO[bytes],
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a daemon that must not outlive the topology. Both outputs go to ``log``."""
        process = namespace.popen(argv, stdout=log, stderr=subprocess.STDOUT, env=env)
        self._processes.append(process)
        return process

    def _namespace(self, label: str) -> Namespace:
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        return namespace

    @staticmethod
    def _forwarding(router: Namespace) -> None:
        # What a router has to say by itself: it forwards. Loose reverse-path filtering is what
        # systemd ships; strict filtering would drop what comes out of a tunnel device.
        router.sysctl(
            {
                "ipv4.ip_forward": 1,
                "ipv6.conf.all.forwarding": 1,
                "ipv4.conf.all.rp_filter": 2,
                "ipv4.conf.default.rp_filter": 2,
            }
        )

    @staticmethod
    def _connect_lan(site: Site, lan: Namespace, gw: Namespace) -> None:
        gw.ip(f"link add name lan0 type veth peer name eth0 netns {lan.name}")
        inside, outside = [], []
        for index, net in enumerate(site.lans):
            length = ipaddress.ip_network(net).prefixlen
            nodad = " nodad" if ":" in net else ""
            outside.append(f"address add {site.gateway(index)}/{length} dev lan0{nodad}")
            inside.append(f"address add {site.host(index)}/{length} dev eth0{nodad}")
        gw.ip(*outside, "link set dev lan0 up")
        lan.ip(*inside, "link set dev eth0 up")
        defaults: dict[bool, str] = {}
        for index, net in enumerate(site.lans):  # the first LAN of each family leads out
            defaults.setdefault(":" in net, site.gateway(index))
        lan.ip(*(f"route add default via {gateway}" for gateway in defaults.values()))

    def _connect_wan(self, site: Site, gw: Namespace, port: str) -> None:
        gw.ip(f"link add name wan0 mtu {self.mtu} type veth peer name {port} netns {self.wan.name}")
        near, far = [], [f"link set dev {port} mtu {self.mtu}"]
        for index, own in enumerate(site.wan_interfaces):
            nodad = " nodad" if own.version == 6 else ""
            near.append(f"address add {own} dev wan0{nodad}")
            far.append(f"address add {site.router(index)} dev {port}{nodad}")
        gw.ip(*near, "link set dev wan0 up")
        self.wan.ip(*far, f"link set dev {port} up")
        gw.ip(*(f"route add default via {site.router(i).ip}" for i in range(len(site.wan))))
        versions = {i.version for i in site.wan_interfaces}
        self.wan.ip(
            *(
                f"route add {net} via {site.wan_address(6 if ':' in net else 4)}"
                for net in site.lans
                if (6 if ":" in net else 4) in versions
            )
        )
