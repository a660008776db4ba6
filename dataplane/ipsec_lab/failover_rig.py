"""Three gateways of a cluster, a node with a pod, and two remote sites, all of them ours.

::

      pod            g1     g2     g3        gateways: kube-ipsec gateway --cluster
       |              |\\     |\\     |\
     +---+            | \\    | \\    | \
     | w |            |  \\   |  \\   |  \\     w: kube-ipsec route-agent
     +---+            |   \\  |   \\  |   \
       |              |    wan0   wan0   wan0
     fabric (192.0.2.0/24) ----- api         r1, r2: kube-ipsec gateway --manifests
                      wan (198.51.100.0/24) ---- r1 (10.9.0.0/16), r2 (10.8.0.0/16)

The API server is a stand-in (``apistub``), and the tunnels' Secrets are what ``compile`` makes of
documents. Whatever comes out of the cluster in clear text at a remote site is counted.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

import yaml

from ipsec_api.cluster import (
    TUNNEL_KEY,
    TUNNEL_LABEL,
    TUNNEL_SECRET_TYPE,
    tunnel_annotations,
    tunnel_secret_name,
)
from ipsec_api.compile import compile as compile_snapshot
from ipsec_api.documents import collect
from ipsec_lab import manifests
from ipsec_lab.apistub import SECRETS
from ipsec_lab.netns import LabError, Namespace, end_process, sweep

GATEWAYS: Final = ("g1", "g2", "g3")
REMOTES: Final = {"r1": "10.9.0.0/16", "r2": "10.8.0.0/16"}
PODS: Final = "10.244.0.0/16"
API: Final = "192.0.2.250"
_PSK: Final = b"a secret of the failover tests"
_MAINS: Final = {
    "gateway": "from ipsec_gateway.cli import gateway; gateway()",
    "route-agent": "from ipsec_gateway.routeagent.cli import route_agent; route_agent()",
}
#: The clock of Leases is hours wrong.
_SKEWED: Final = (
    "from datetime import UTC, datetime, timedelta;"
    "from ipsec_gateway.cluster.leases import Leases;"
    "Leases.__init__.__kwdefaults__['clock'] ="
    " lambda: datetime.now(UTC) + timedelta(hours={hours});"
)


class FailoverRig:
    """The namespaces and the processes in them. A context manager that leaves nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.namespaces: Final[dict[str, Namespace]] = {}
        self._processes: Final[dict[str, subprocess.Popen[bytes]]] = {}
        self._logs: Final[list[IO[bytes]]] = []
        #: On tmpfs, as the memory of gateways has to be.
        self.memory: Final = Path("/dev/shm") / f"kube-ipsec-rig-{os.getpid()}"  # noqa: S108

    def __enter__(self) -> Self:
        sweep()
        try:
            self.memory.mkdir(mode=0o700)
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for log in self._logs:
            log.close()
        for namespace in self.namespaces.values():
            namespace.delete()
        shutil.rmtree(self.memory, ignore_errors=True)

    # -- the network

    def _build(self) -> None:
        for name in ("fabric", "wan", *GATEWAYS, "w", "pod", *REMOTES):
            self.namespaces[name] = Namespace(name)
        for name in ("fabric", "wan"):
            self.namespaces[name].ip("link add br0 type bridge", "link set br0 up")
        self.namespaces["fabric"].ip(f"address add {API}/24 dev br0")
        for number, name in enumerate((*GATEWAYS, "w"), 1):
            node = self.namespaces[name]
            node.sysctl({"ipv4.ip_forward": 1})
            self._plug(name, "eth0", "fabric", f"192.0.2.{number}/24")
            if name == "w":
                continue
            self._plug(name, "wan0", "wan", f"198.51.100.{number}/24")
            node.ip(
                "link add cni0 type bridge",
                f"address add 10.244.{number}.1/24 dev cni0",
                "link set cni0 up",
                "route add 10.244.4.0/24 via 192.0.2.4 dev eth0",
            )
        worker, pod = self.namespaces["w"], self.namespaces["pod"]
        worker.ip(
            f"link add cali0 type veth peer name eth0 netns {pod.name}",
            "address add 10.244.4.1/24 dev cali0",
            "link set cali0 up",
        )
        pod.ip(
            "address add 10.244.4.2/24 dev eth0",
            "link set eth0 up",
            "route add default via 10.244.4.1",
        )
        for number, (name, network) in enumerate(REMOTES.items(), 101):
            self._plug(name, "wan0", "wan", f"198.51.100.{number}/24")
            site = self.namespaces[name]
            base = network.removesuffix(".0.0/16")
            site.ip(
                "link add lan0 type bridge",
                f"address add {base}.0.1/16 dev lan0",
                f"address add {base}.0.9/16 dev lan0",
                "link set lan0 up",
            )
            site.nft(
                "table inet leak { counter clear { }\nchain in { type filter hook prerouting"
                f' priority -500; iifname "wan0" ip saddr {PODS} counter name clear drop; }}\n}}\n'
            )

    def _plug(self, name: str, device: str, switch: str, address: str) -> None:
        peer = f"{name}-{device}"
        self.namespaces[name].ip(
            f"link add {device} type veth peer name {peer} netns {self.namespaces[switch].name}",
            f"address add {address} dev {device}",
            f"link set {device} up",
        )
        self.namespaces[switch].ip(f"link set {peer} master br0 up")

    def cut(self, name: str, *devices: str) -> None:
        """Cut the links of a node: eth0 (nodes, API server), wan0 (remote sites)."""
        self._links(name, devices, "down")

    def mend(self, name: str, *devices: str) -> None:
        """The links are back."""
        self._links(name, devices, "up")

    def _links(self, name: str, devices: tuple[str, ...], state: str) -> None:
        for device in devices:
            switch = "fabric" if device == "eth0" else "wan"
            self.namespaces[switch].ip(f"link set {name}-{device} {state}")

    def part(self, one: str, other: str) -> None:
        """These two do not reach each other, and everybody else does."""
        number = GATEWAYS.index(other) + 1
        self.namespaces[one].nft(
            "table inet part { chain in { type filter hook input priority -300;"
            f" ip saddr 192.0.2.{number} drop; }}\n"
            "chain out { type filter hook output priority -300;"
            f" ip daddr 192.0.2.{number} drop; }}\n}}\n"
        )

    def rejoin(self, one: str) -> None:
        """``part`` is over."""
        self.namespaces[one].nft("delete table inet part\n")

    def clear(self) -> int:
        """Packets of pods that came to a remote site in clear text."""
        texts = (self.namespaces[r].run("nft", "list", "counters") for r in REMOTES)
        return sum(int(n) for text in texts for n in re.findall(r"packets (\d+)", text))

    # -- the processes

    def start(self, *options: str, spec: dict[str, Any] | None = None) -> None:
        """API server, tunnels, remote sites, route agent; gateways are started one by one."""
        (self.folder / "key").write_bytes(os.urandom(32))
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": f"http://{API}:8080"}}],
            "users": [{"name": "x", "user": {"token": "none"}}],
        }
        (self.folder / "kubeconfig").write_text(yaml.safe_dump(config))
        self._processes["api"] = api = self.namespaces["fabric"].popen(
            [sys.executable, "-m", "ipsec_lab.apistub", API, "8080"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert api.stdout is not None
        api.stdout.readline()
        for name in GATEWAYS:
            self.api({"put": f"/api/v1/nodes/{name}", "body": {"metadata": {"uid": f"u-{name}"}}})
        for number, (name, network) in enumerate(REMOTES.items(), 101):
            self._remote(name, network, [PODS], _PSK)
            self._tunnel(name, f"198.51.100.{number}", network, spec or {})
        gateways = [f"--gateway={n}=192.0.2.{i}" for i, n in enumerate(GATEWAYS, 1)]
        self._launch(
            "w",
            [
                "route-agent",
                "--node-name=w",
                "--node-ip=192.0.2.4",
                *gateways,
                f"--mesh-key={self.folder / 'key'}",
                "--listen=127.0.0.1:9502",
                *options,
            ],
        )

    def _remote(
        self, name: str, network: str, behind: Sequence[str], psk: bytes, **spec: Any
    ) -> None:
        """A remote site with ``network``, which answers to any of the gateways; ``behind`` them are
        these networks."""
        folder = self.folder / name
        folder.mkdir()
        peer = manifests.peer(
            "cluster",
            address="198.51.100.1",
            psk_from="psk",
            fallbackAddresses=["198.51.100.2", "198.51.100.3"],
            passive=True,
            localSubnets=[network],
            remoteSubnets=list(behind),
            **spec,
        )
        manifests.write(folder, manifests.secret("psk", psk), peer)
        self._launch(name, ["gateway", f"--manifests={folder}", "--dataplane=userspace"])

    def _tunnel(self, name: str, address: str, network: str, spec: dict[str, Any]) -> None:
        peer = manifests.peer(
            name, address=address, psk_from="psk", localSubnets=[PODS], remoteSubnets=[network]
        )
        peer["spec"] |= spec
        text = yaml.safe_dump_all([manifests.secret("psk", _PSK), peer])
        collected = collect({"documents.yaml": text})
        result = compile_snapshot(collected.snapshot)
        (tunnel,) = result.tunnels
        rendered = tunnel.to_json()
        body = {
            "type": TUNNEL_SECRET_TYPE,
            "metadata": {
                "labels": {TUNNEL_LABEL: "true"},
                "annotations": dict(tunnel_annotations(tunnel, rendered)),
            },
            "data": {TUNNEL_KEY: base64.b64encode(rendered.encode()).decode()},
        }
        self.api({"put": f"{SECRETS}/{tunnel_secret_name('default', name)}", "body": body})
        self.api({"put": self._peer_path(name), "body": peer})

    @staticmethod
    def _peer_path(name: str) -> str:
        return f"/apis/kubeipsec.dev/v1alpha1/namespaces/default/ipsecpeers/{name}"

    def gateway(self, name: str, *, hours: int = 0) -> None:
        """Start one, with a clock that is some hours wrong."""
        self._gateway(name, name, "kube-ipsec", hours)

    def _gateway(self, name: str, node: str, namespace: str, hours: int) -> None:
        number = GATEWAYS.index(name) + 1
        env = {
            "NODE_NAME": node,
            "NODE_IP": f"192.0.2.{number}",
            "POD_NAMESPACE": namespace,
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "KUBE_IPSEC_MESH_KEY": str(self.folder / "key"),
        }
        options = ["gateway", "--cluster", "--dataplane=userspace"]
        options.append(f"--resume={self.memory / name}")
        (self.memory / name).mkdir(mode=0o700, exist_ok=True)
        self._launch(name, options, env, _SKEWED.format(hours=hours) if hours else "")

    def _launch(
        self, name: str, argv: list[str], env: dict[str, str] | None = None, first: str = ""
    ) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._logs.append(log)
        self._processes[name] = self.namespaces[name].popen(
            [sys.executable, "-c", first + _MAINS[argv[0]], *argv[1:]],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._processes[name].kill()
        self._processes[name].wait()

    def terminate(self, name: str) -> int:
        """SIGTERM, and its exit status."""
        return end_process(self._processes[name], grace=15)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal."""
        self._processes[name].send_signal(number)

    def api(self, order: dict[str, Any]) -> Any:
        """Have the API server do something."""
        process = self._processes["api"]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        row = process.stdout.readline()
        if not row:
            raise LabError("the stand-in for the API server has ended")
        return json.loads(row)

    def status(self, name: str) -> dict[str, Any]:
        """Of an IPsecPeer, as the API server has it."""
        found = self.api({"get": self._peer_path(name)})
        return dict(found.get("status") or {})

    def view(self, name: str) -> dict[str, Any]:
        """What a gateway says of the cluster; empty where it does not answer."""
        text = self.namespaces[name].run(
            "curl", "-s", "-m", "2", "http://127.0.0.1:9500/status", check=False
        )
        try:
            return dict(json.loads(text)["cluster"])
        except (ValueError, KeyError):
            return {}

    def owners(self, peer: str) -> list[str]:
        """The gateways that say that they hold ``default/PEER``."""
        return [
            name for name in self.alive() if f"default/{peer}" in self.view(name).get("held", ())
        ]

    def alive(self) -> list[str]:
        """The gateways whose process is running."""
        running = {name for name, each in self._processes.items() if each.poll() is None}
        return [name for name in GATEWAYS if name in running]

    def wait(self, what: str, check: Callable[[], bool], *, seconds: float = 90.0) -> None:
        """Until it is so. Raises LabError with the last lines of all logs."""
        deadline = time.monotonic() + seconds
        while not check():
            if time.monotonic() > deadline:
                raise LabError(f"{what}: not within {seconds:g} s\n{self.logs()}")
            time.sleep(0.1)

    def logs(self, lines: int = 25) -> str:
        """The ends of all logs."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            found.append(f"--- {path.name}\n" + "\n".join(tail))
        return "\n".join(found)
