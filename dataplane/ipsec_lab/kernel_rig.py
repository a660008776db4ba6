"""Two sites on a kernel with XFRM: our gateway or charon at site a, charon (kernel-netlink) at b.

Everything starts many times slower in the emulated machine, so what can stay from one test to the
next does: the namespaces and the charons. Deadlines are long and nothing is judged by the clock.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipsec_lab import guest_inside
from ipsec_lab.gateway import GatewayProcess, Process
from ipsec_lab.guard import Guard
from ipsec_lab.interop import PEER, InteropRig
from ipsec_lab.manifests import Document
from ipsec_lab.netns import LabError, Namespace
from ipsec_lab.strongswan import (
    Charon,
    CharonIkeSa,
    CharonSettings,
    Child,
    Connection,
)
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping, ping_until, tcp_transfer
from ipsec_lab.vici import Section, ViciError

#: How much longer than on the host everything may take.
SLOW: Final = 10.0

_KEY: Final = "0x" + bytes(range(20)).hex()
_KERNEL: Final = CharonSettings(kernel=True, retransmit_timeout=4.0, log_level=1)


class SlowGateway(GatewayProcess):
    """Our gateway, forked off the warm interpreter of the guest, with its kernel data plane.

    What the next gateway in the same directory goes on with is kept on the tmpfs of /run.
    """

    @property
    def records(self) -> Path:
        """Where it keeps what the next one goes on with."""
        return Path("/run/kube-ipsec-lab", *self.state.parts[-3:-1])

    def start(self, *options: str, timeout: float = 40.0) -> None:
        self.records.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().start(*self._fixed(), *options, timeout=timeout * SLOW)

    def beside(self, *options: str) -> Process:
        """A second one with the same documents and records. Who calls it waits for its end."""
        return self._launch(["--manifests", str(self.manifests), *self._fixed(), *options])

    def cleanup(self, *, timeout: float = 15.0) -> int:
        """``--cleanup``, after it has ended; gives the exit status."""
        return self._launch(["--cleanup", *self._fixed()]).wait(timeout * SLOW)

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, str]:
        return super().get(path, timeout=timeout * SLOW)

    def _fixed(self) -> list[str]:
        return ["--dataplane", "xfrm", "--resume", str(self.records)]

    def stop(self, *, timeout: float = 15.0) -> int:
        return super().stop(timeout=timeout * SLOW)

    def wait(self, reached: Callable[[], bool], what: str, *, timeout: float = 10.0) -> None:
        super().wait(reached, what, timeout=timeout * SLOW)

    def _launch(self, options: Sequence[str]) -> Process:
        if guest_inside.FORKS is None:
            raise LabError("gateways are forked only in the guest")
        return guest_inside.FORKS.gateway(
            options, namespace=self.namespace.path, log=self.log_path, env=os.environ
        )


class SlowCharon(Charon):
    """charon with deadlines that suit the guest."""

    def start(self, *, timeout: float = 20.0) -> None:
        super().start(timeout=timeout * SLOW)

    def wait_for(
        self,
        condition: Callable[[list[CharonIkeSa]], bool],
        what: str,
        *,
        timeout: float = 10.0,
    ) -> list[CharonIkeSa]:
        return super().wait_for(condition, what, timeout=timeout * SLOW)

    def initiate(self, *, child: str = "", ike: str = "", timeout: float = 15.0) -> None:
        super().initiate(child=child, ike=ike, timeout=timeout * SLOW)

    def load(self, *connections: Connection) -> None:
        """Over vici itself: in here the start of swanctl takes a minute."""
        with self.vici(timeout=60) as vici:
            for listed in vici.stream("list-conns", "list-conn"):
                for name in listed:
                    vici.request("unload-conn", {"name": name})
            vici.request("clear-creds")
            for connection in connections:
                shared: Section = {
                    "type": "IKE",
                    "data": connection.psk.decode(),  # the secrets of the lab are ASCII
                    "owners": list(connection.secret_ids),
                }
                vici.request("load-shared", shared)
                vici.request("load-conn", {connection.name: _as_section(connection)})

    def forget(self) -> None:
        """Drop every connection and SA without waiting for the other side."""
        for sa in self.sas():
            with contextlib.suppress(ViciError), self.vici(timeout=60) as vici:  # it went by itself
                vici.request("terminate", {"ike-id": str(sa.unique_id), "force": "yes"})
        self.load()
        self.wait_for(lambda sas: not sas, "no IKE_SA is left")


@dataclass(frozen=True)
class XfrmSa:
    """A state of the kernel, as ``ip -s xfrm state`` shows it, in part."""

    source: str
    destination: str
    protocol: str
    spi: int
    mode: str
    text: str


class KernelRig(InteropRig):
    """What one test works with. ``charons`` are those of the session, by site."""

    def __init__(
        self,
        topology: Topology,
        guard: Guard,
        directory: Path,
        charons: Mapping[str, SlowCharon],
    ) -> None:
        super().__init__(topology, guard, directory)
        self._charons: Final = charons
        self._used: Final[set[str]] = set()
        self._slow: SlowGateway | None = None

    @property
    def charon(self) -> SlowCharon:
        return self.charon_at("b")

    def charon_at(self, site: str) -> SlowCharon:
        """charon of a site. Raises LabError before it was started."""
        if site not in self._used:
            raise LabError(f"charon at site {site} was not started")
        return self._charons[site]

    def start_theirs(
        self,
        *connections: Connection,
        settings: CharonSettings | None = None,
        site: str = "b",
    ) -> SlowCharon:
        """charon of a site with these connections; it is the same one for all tests."""
        if settings is not None:
            raise LabError("charon keeps its settings for the whole session")
        charon = self._charons[site]
        self._used.add(site)
        if not charon.running:
            charon.start()
        charon.load(*connections)
        return charon

    @property
    def gateway(self) -> SlowGateway:
        if self._slow is None:
            raise LabError("our gateway was not started")
        return self._slow

    def start_ours(self, documents: Sequence[Document], *options: str) -> SlowGateway:
        if self._charons["a"].running:  # it has the ports
            self._charons["a"].stop()
        directory = self._directory / "gateway"
        directory.mkdir(exist_ok=True)
        self._gateway = self._slow = SlowGateway(self.topology, self.topology.gw_a, directory)
        self._slow.apply(*documents)
        self._slow.start(*options)
        return self._slow

    def wait_up(self, connection: Connection, *, timeout: float = 15.0) -> None:
        self.gateway.wait_condition(PEER, timeout=timeout)
        for child in connection.children:
            self.charon.wait_installed(child.name, timeout=timeout)

    def mirrored(self, **settings: Any) -> Connection:
        """``connection`` as a charon at site a has it."""
        theirs = self.connection(**settings)
        (child,) = theirs.children
        flipped: dict[str, Any] = vars(child) | {
            "local_ts": child.remote_ts,
            "remote_ts": child.local_ts,
        }
        return Connection(
            **vars(theirs)
            | {
                "local_addrs": theirs.remote_addrs,
                "remote_addrs": theirs.local_addrs,
                "children": (type(child)(**flipped),),
            }
        )

    def exchange_traffic(self, *, lan: tuple[int, ...] = (0,)) -> None:
        """Pings from both ends and a little TCP, in the LANs of these indices. Raises LabError."""
        top = self.topology
        for index in lan:
            a, b = top.a.host(index), top.b.host(index)
            for namespace, source, address in ((top.lan_a, a, b), (top.lan_b, b, a)):
                ping_until(namespace, address, source=source, timeout=60)
                lost = ping(namespace, address, count=3, interval=0.05, source=source, wait=5).lost
                if lost:
                    raise LabError(f"pings {lost} of 3 from {source} to {address} are lost")
            transfer = tcp_transfer(top.lan_a, top.lan_b, b, octets=1 << 17, source_address=a)
            if not transfer.intact:
                raise LabError(f"TCP to {b} arrived damaged")

    def exchange_outer(self, *, version: int = 4) -> None:
        """Pings between the gateways themselves: what transport mode protects. Raises LabError."""
        top = self.topology
        for namespace, site in ((top.gw_a, top.b), (top.gw_b, top.a)):
            address = site.wan_address(version)
            ping_until(namespace, address, timeout=60)
            if ping(namespace, address, count=3, wait=5).lost:
                raise LabError(f"pings from {namespace.label} to {address} are lost")

    def states(self, site: str = "a") -> list[XfrmSa]:
        """The kernel's SAs of a site's gateway."""
        return xfrm_states(self.topology.gateway(site))

    def stop(self) -> None:
        if self._gateway is not None:
            self._gateway.kill()
        for site in sorted(self._used):
            if self._charons[site].running:
                self._charons[site].forget()

    def logs(self) -> dict[str, str]:
        found = {}
        if self._gateway is not None:
            found["our gateway"] = self._gateway.log()
        for site in sorted(self._used):
            found[f"charon at site {site}"] = self._charons[site].log()
        for site in ("a", "b"):
            namespace = self.topology.gateway(site)
            found[f"XFRM of site {site}"] = "\n".join(
                namespace.run("ip", *what, check=False)
                for what in (("-s", "xfrm", "state"), ("xfrm", "policy"))
            )
            found[f"xfrm_stat of site {site}"] = "\n".join(
                line
                for line in namespace.run("cat", "/proc/net/xfrm_stat").splitlines()
                if not line.endswith(" 0") and not line.endswith("\t0")
            )
        return found


def _as_section(connection: Connection) -> Section:
    """What swanctl would make of the connection in swanctl.conf.j2."""
    c = connection
    section: Section = {
        "version": "2",
        "mobike": "no",
        "proposals": list(c.proposals),
        "encap": "yes" if c.encap else "no",
        "fragmentation": c.fragmentation,
        "childless": c.childless,
        "unique": c.unique,
        "keyingtries": str(c.keyingtries),
        "dpd_delay": f"{c.dpd_delay}s",
        "rekey_time": f"{c.rekey_time}s",
        "rand_time": f"{c.rand_time}s",
        "local": _end(c.local_id),
        "remote": _end(c.remote_id),
        "children": {child.name: _child_section(child) for child in c.children},
    }
    if c.local_addrs:
        section["local_addrs"] = list(c.local_addrs)
    if c.remote_addrs:
        section["remote_addrs"] = list(c.remote_addrs)
    if c.over_time:
        section["over_time"] = f"{c.over_time}s"
    return section


def _end(identity: str) -> Section:
    return {"auth": "psk", "id": identity} if identity else {"auth": "psk"}


def _child_section(child: Child) -> Section:
    section: Section = {
        "mode": child.mode,
        "local_ts": list(child.local_ts),
        "remote_ts": list(child.remote_ts),
        "replay_window": str(child.replay_window),
        "start_action": child.start_action,
        "close_action": child.close_action,
        "dpd_action": child.dpd_action,
        "rekey_time": f"{child.rekey_time}s",
        "rand_time": f"{child.rand_time}s",
    }
    if child.if_id:
        section["if_id_in"] = section["if_id_out"] = str(child.if_id)
    if child.ah_proposals:
        section["ah_proposals"] = list(child.ah_proposals)
    else:
        section["esp_proposals"] = list(child.esp_proposals)
    for name in ("rekey_packets", "life_packets", "rekey_bytes", "life_bytes"):
        if limit := getattr(child, name):
            section[name] = str(limit)
    if child.life_time:
        section["life_time"] = f"{child.life_time}s"
    if child.rekey_packets:
        section["rand_packets"] = "0"
    if child.rekey_bytes:
        section["rand_bytes"] = "0"
    return section


def set_by_hand(topology: Topology) -> None:
    """SAs and policies of a tunnel between the sites, without any IKE."""
    a, b = topology.a, topology.b
    outer = {"a": a.wan_address(), "b": b.wan_address()}
    for site, local, remote in (("a", a, b), ("b", b, a)):
        namespace = topology.gateway(site)
        here, there = local.wan_address(), remote.wan_address()
        lines = [
            f"xfrm state add src {outer[x]} dst {outer[y]} proto esp spi {spi} reqid 7 mode tunnel "
            f"aead rfc4106(gcm(aes)) {_KEY} 128"
            for x, y, spi in (("a", "b", "0x1001"), ("b", "a", "0x1002"))
        ]
        for direction, ends in (
            ("out", (local.lans[0], remote.lans[0], here, there)),
            ("in", (remote.lans[0], local.lans[0], there, here)),
            ("fwd", (remote.lans[0], local.lans[0], there, here)),
        ):
            src, dst, tmpl_src, tmpl_dst = ends
            lines.append(
                f"xfrm policy add src {src} dst {dst} dir {direction} "
                f"tmpl src {tmpl_src} dst {tmpl_dst} proto esp reqid 7 mode tunnel"
            )
        namespace.ip(*lines)


def charons(topology: Topology, directory: Path) -> dict[str, SlowCharon]:
    """One for each site; started when a test first wants it."""
    found = {}
    for site in ("a", "b"):
        folder = directory / f"charon-{site}"
        folder.mkdir()
        found[site] = SlowCharon(topology, topology.gateway(site), folder, _KERNEL)
    return found


def xfrm_states(namespace: Namespace) -> list[XfrmSa]:
    """The SAs of a namespace."""
    blocks = re.split(r"\n(?=src )", namespace.run("ip", "-s", "xfrm", "state"))
    return [
        XfrmSa(head[1], head[2], head[3], int(head[4], 16), head[5], block.strip())
        for block in blocks
        if (head := _STATE.match(block))
    ]


_STATE: Final = re.compile(
    r"src (\S+) dst (\S+)\s+proto (\S+) spi (0x[0-9a-f]+)\S* .*?mode (\S+)", re.DOTALL
)
