"""Three nodes of a cluster with a pod each, a CNI, and a remote network behind two of them.

::

      pod-g1        pod-g2        pod-w        pods 10.244.N.2, fd00:244:N::2 (N = 1, 2, 3)
        |             |             |
    +-------+     +-------+     +-------+      flannel.1: the CNI's overlay among the nodes
    |  g1   |     |  g2   |     |   w   |      every node masquerades what leaves the cluster
    +-------+     +-------+     +-------+
     |     \\       |     \\      |     \\
     |     wan0    |     wan0   |     wan0     10.9.0.9, fd00:9::9 live in ``remote``, and from
     |        \\    |        \\   |        \\     every node the default route leads there: what
     +----------- fabric -----------+   \\ \\ \\  arrives from ``w`` is a leak
                                       remote

The links of gateways to ``remote`` stand for their tunnels. ``fabric`` is a switch (all nodes in
192.0.2.0/24) or a router with a network per node, which drops addresses that are not the nodes', as
clouds do. Reverse path checks are strict everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Literal, Self

from ipsec_lab.netns import LabError, Namespace, end_process, sweep

NAMES: Final = ("g1", "g2", "w")
REMOTES: Final = ("10.9.0.0/16", "fd00:9::/64")
REMOTE4: Final = "10.9.0.9"
REMOTE6: Final = "fd00:9::9"
MESH_PORT: Final = 4499

Fabric = Literal["switch", "router"]


class Nodes:
    """The namespaces, and the processes in them. A context manager that leaves nothing."""

    def __init__(self, folder: Path, fabric: Fabric = "switch") -> None:
        self.folder: Final = folder
        self.fabric_kind: Final = fabric
        self.node: Final[dict[str, Namespace]] = {}
        self.pod: Final[dict[str, Namespace]] = {}
        self._namespaces: Final[list[Namespace]] = []
        self._processes: Final[list[subprocess.Popen[bytes]]] = []
        self._stubs: Final[dict[str, subprocess.Popen[bytes]]] = {}
        self._agents: Final[dict[str, subprocess.Popen[bytes]]] = {}
        self._logs: Final[list[IO[bytes]]] = []
        self.key: Final = folder / "key"

    def __enter__(self) -> Self:
        sweep()
        self.key.write_bytes(bytes(range(32)))
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove the namespaces."""
        for process in reversed(self._processes):
            end_process(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()
        for log in self._logs:
            log.close()
        for namespace in self._namespaces:
            namespace.delete()
        self._namespaces.clear()

    # -- addresses

    def address(self, name: str, version: int = 4) -> str:
        """The node address."""
        number = NAMES.index(name) + 1
        if self.fabric_kind == "switch":
            return f"192.0.2.{number}" if version == 4 else f"2001:db8::{number}"
        return f"192.0.{number}.1" if version == 4 else f"2001:db8:{number}::1"

    @staticmethod
    def pod_address(name: str, version: int = 4) -> str:
        """The address of the pod on a node."""
        number = NAMES.index(name) + 1
        return f"10.244.{number}.2" if version == 4 else f"fd00:244:{number}::2"

    # -- processes

    def gateway(self, name: str) -> None:
        """Start the mesh stream of a gateway; it owns nothing yet."""
        process = self.node[name].popen(
            [sys.executable, "-m", "ipsec_lab.mesh_stub", name, str(MESH_PORT), str(self.key)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._processes.append(process)
        self._stubs[name] = process
        assert process.stdout is not None
        if process.stdout.readline() != b"up\n":
            raise LabError(f"the mesh stub of {name} did not start")

    def say(
        self,
        name: str,
        *peers: str,
        draining: bool = False,
        gives_up: tuple[str, ...] = (),
        use: tuple[str, ...] = (),
    ) -> None:
        """Have a gateway own these peers; all have the same remote subnets but for their number:
        the n-th one (``ns/peer0`` is 0) has 10.9+n.0.0/16."""
        document = {
            "owned": {peer: remotes_of(peer) for peer in peers},
            "draining": draining,
            "gives_up": gives_up,
            "use": use,
        }
        process = self._stubs[name]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(document).encode() + b"\n")
        process.stdin.flush()
        if process.stdout.readline() != b"said\n":
            raise LabError(f"the mesh stub of {name} has ended")

    def kill_gateway(self, name: str) -> None:
        """Its stream goes silent."""
        self._stubs[name].kill()
        self._stubs[name].wait()

    def agent(self, name: str, *options: str, version: int = 4) -> None:
        """Start a route agent that knows both gateways."""
        log = (self.folder / f"agent-{name}.log").open("ab")
        self._logs.append(log)
        process = self.node[name].popen(
            self.agent_argv(name, *options, version=version), stderr=log
        )
        self._processes.append(process)
        self._agents[name] = process

    def agent_argv(self, name: str, *options: str, version: int = 4) -> list[str]:
        """Its command line: with CAP_NET_ADMIN alone, as in its pod."""
        both = (4, 6) if version == 4 else (6, 4)
        own = ",".join(self.address(name, v) for v in both)
        argv = ["setpriv", "--bounding-set", "-all,+net_admin", "--no-new-privs", "--"]
        argv += [sys.executable, "-c"]
        argv.append("from ipsec_gateway.routeagent.cli import route_agent; route_agent()")
        argv += ["--node-name", name, "--node-ip", own, "--mesh-key", str(self.key)]
        argv += ["--state", str(self.folder / "state"), "--log-level", "debug"]
        for gateway in NAMES[:2]:
            addresses = f"{self.address(gateway, both[0])},{self.address(gateway, both[1])}"
            argv += ["--gateway", f"{gateway}={addresses}"]
        return [*argv, *options]

    def stop_agent(self, name: str, *, kill: bool = False) -> int:
        """End it; returns the exit code."""
        process = self._agents.pop(name)
        if kill:
            process.kill()
            return process.wait()
        return end_process(process)

    def log(self, name: str) -> str:
        """What the agents on a node have said so far."""
        return (self.folder / f"agent-{name}.log").read_text()

    def page(self, name: str, path: str) -> str:
        """A page of the agent on a node; empty while it does not answer."""
        with self.node[name].socket() as sock:
            sock.settimeout(3)
            try:
                sock.connect(("127.0.0.1", 9502))
                sock.sendall(f"GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n".encode())
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            except OSError:
                return ""
        return answer.partition(b"\r\n\r\n")[2].decode()

    def wait_for(self, name: str, peer: str, gateway: str | None, way: str) -> None:
        """Until the agent on ``name`` has this way to a peer. Raises LabError after a minute."""
        seen = ""
        wanted = {"gateway": gateway, "way": way}

        def there() -> bool:
            nonlocal seen
            seen = self.page(name, "/status")
            try:
                it = json.loads(seen)["peers"].get(peer, {})
            except (ValueError, KeyError):
                return False
            return all(it.get(key) == value for key, value in wanted.items())

        if not eventually(there):
            raise LabError(
                f"{name} has no way {way} to {peer} by {gateway}: {seen}{self.log(name)}"
            )

    # -- traffic

    def pings(self, name: str, address: str = REMOTE4, *options: str) -> bool:
        """Whether the pod on a node reaches an address."""
        argv = ("ping", "-n", "-c", "1", "-W", "1", *options, address)
        return " 0% packet loss" in self.pod[name].run(*argv, check=False)

    def answer_by(self, name: str) -> None:
        """Have what the remote network answers come back by this node."""
        four, six = f"10.255.{NAMES.index(name) + 1}.1", f"fd00:255:{NAMES.index(name) + 1}::1"
        self.remote.ip(
            f"route replace 10.244.0.0/16 via {four}", f"route replace fd00:244::/32 via {six}"
        )

    def leaked(self) -> int:
        """Packets that arrived at the remote network straight from the worker node."""
        return self.arrived("w")

    def arrived(self, name: str) -> int:
        """Echo requests that arrived at the remote network by this node."""
        return next(
            int(e["counter"]["packets"])
            for e in self.remote.nft_list("counters")
            if e.get("counter", {}).get("name") == f"from_{name}"
        )

    # -- building

    def _namespace(self, label: str) -> Namespace:
        namespace = Namespace(label)
        self._namespaces.append(namespace)
        return namespace

    def _build(self) -> None:
        self.fabric = self._namespace("fabric")
        self.remote = self._namespace("remote")
        self.remote.ip(f"address add {REMOTE4}/32 dev lo", f"address add {REMOTE6}/128 dev lo")
        for name in NAMES:
            self.node[name] = self._namespace(name)
            self.pod[name] = self._namespace(f"pod-{name}")
        if self.fabric_kind == "switch":
            self.fabric.ip("link add br0 type bridge", "link set br0 up")
        else:
            self.fabric.sysctl({"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1})
            self.fabric.nft(
                "table inet fabric { chain forward { type filter hook forward priority 0;"
                " policy drop; ip saddr 192.0.0.0/16 ip daddr 192.0.0.0/16 accept;"
                " ip6 saddr 2001:db8::/32 ip6 daddr 2001:db8::/32 accept; }\n}\n"
            )
        for number, name in enumerate(NAMES, 1):
            self._node(number, name)
        self._overlay()
        rules = "".join(
            f"counter from_{n} {{ }}\nchain in_{n} {{ type filter hook prerouting priority 0;"
            f' iifname "{n}" icmp type echo-request counter name "from_{n}";'
            f' iifname "{n}" icmpv6 type echo-request counter name "from_{n}"; }}\n'
            for n in NAMES
        )
        self.remote.nft(f"table inet seen {{\n{rules}}}\n")
        self.answer_by("g1")

    def _node(self, number: int, name: str) -> None:
        node, pod = self.node[name], self.pod[name]
        strict = {"ipv4.conf.all.rp_filter": 1, "ipv4.conf.default.rp_filter": 1}
        node.sysctl({"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1, **strict})
        four, six = self.address(name), self.address(name, 6)
        node.ip(f"link add eth0 type veth peer name {name} netns {self.fabric.name}")
        node.ip(
            f"address add {four}/24 dev eth0",
            f"address add {six}/64 dev eth0 nodad",
            "link set eth0 up",
            f"link add wan0 type veth peer name {name} netns {self.remote.name}",
            f"address add 10.255.{number}.1/24 dev wan0",
            f"address add fd00:255:{number}::1/64 dev wan0 nodad",
            "link set wan0 up",
            f"link add cali0 type veth peer name eth0 netns {pod.name}",
            f"address add 10.244.{number}.1/24 dev cali0",
            f"address add fd00:244:{number}::1/64 dev cali0 nodad",
            "link set cali0 up",
        )
        self.remote.ip(
            f"address add 10.255.{number}.9/24 dev {name}",
            f"address add fd00:255:{number}::9/64 dev {name} nodad",
            f"link set {name} up",
        )
        node.ip(f"route add default via 10.255.{number}.9 dev wan0")
        node.ip(f"route add default via fd00:255:{number}::9 dev wan0")
        pod.ip(
            f"address add 10.244.{number}.2/24 dev eth0",
            f"address add fd00:244:{number}::2/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via 10.244.{number}.1",
            f"route add default via fd00:244:{number}::1",
        )
        if self.fabric_kind == "switch":
            self.fabric.ip(f"link set {name} master br0 up")
        else:
            self.fabric.ip(
                f"address add 192.0.{number}.254/24 dev {name}",
                f"address add 2001:db8:{number}::fe/64 dev {name} nodad",
                f"link set {name} up",
            )
            node.ip(f"route add 192.0.0.0/16 via 192.0.{number}.254")
            node.ip(f"route add 2001:db8::/32 via 2001:db8:{number}::fe")
        # What a gateway exempts of its own peers, the tunnels' links, is not masqueraded here.
        tunnel = ' oifname != "wan0"' if name in NAMES[:2] else ""
        node.nft(
            "table inet cni { chain post { type nat hook postrouting priority 100;"
            f" ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16{tunnel} masquerade;"
            f" ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32{tunnel} masquerade;"
            " }\n}\n"
        )

    def _overlay(self) -> None:
        """flannel.1: VXLAN among the nodes, with everything said beforehand."""
        for number, name in enumerate(NAMES, 1):
            lines = [
                f"link add flannel.1 address 02:00:00:00:00:0{number} mtu 1450 type vxlan id 1"
                f" dstport 8472 local {self.address(name)} nolearning",
                "link set flannel.1 up",
                f"address add 10.244.{number}.0/32 dev flannel.1",
            ]
            forwarding = []
            for other, peer in enumerate(NAMES, 1):
                if peer == name:
                    continue
                mac = f"02:00:00:00:00:0{other}"
                lines += [
                    f"neigh add 10.244.{other}.0 lladdr {mac} dev flannel.1 nud permanent",
                    f"neigh add fe80::{other} lladdr {mac} dev flannel.1 nud permanent",
                    f"route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink",
                    f"route add fd00:244:{other}::/64 via fe80::{other} dev flannel.1 onlink",
                ]
                forwarding.append(f"fdb add {mac} dev flannel.1 dst {self.address(peer)}")
            self.node[name].ip(*lines)
            self.node[name].run("bridge", "-batch", "-", text="\n".join(forwarding) + "\n")


def remotes_of(peer: str) -> list[str]:
    """The remote subnets of ``ns/peerN``."""
    number = int(peer.removeprefix("ns/peer"))
    return [f"10.{9 + number}.0.0/16", f"fd00:{9 + number:x}::/64"]


def eventually(what: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    """Whether it comes true within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False
