"""The two ends of the demo: our gateway on a folder of manifests, or strongSwan set up from one."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from ipsec_lab.gateway import GatewayProcess
from ipsec_lab.leftovers import footprint, left_behind
from ipsec_lab.netns import LabError, Namespace
from ipsec_lab.strongswan import Charon, Child, Connection
from ipsec_lab.topology import Topology


@dataclass(frozen=True)
class StatusRow:
    """One line of the status table."""

    resource: str
    ready: str
    remote: str
    suite: str
    children: str


class DemoSite(Protocol):
    """What the demo does with an end, whoever it is. All raise LabError with one line."""

    @property
    def title(self) -> str: ...

    def start(self) -> None: ...

    def wait_ready(self, timeout: float) -> None: ...

    def status(self) -> list[StatusRow]: ...

    def delete_peer(self) -> None: ...

    def wait_gone(self, timeout: float) -> None: ...

    def stop(self) -> None: ...

    def logs(self) -> list[Path]: ...


def documents(folder: Path) -> list[dict[str, Any]]:
    """Every YAML document of a folder. Raises LabError if there is no peer among them."""
    found = [
        document
        for path in sorted(folder.glob("*.y*ml"))
        for document in yaml.safe_load_all(path.read_text())
        if document
    ]
    if not any(document.get("kind") == "IPsecPeer" for document in found):
        raise LabError(f"no IPsecPeer in {folder}")
    return found


class OurSite:
    """``kube-ipsec gateway`` on a copy of ``example``, so that the demo may delete from it."""

    def __init__(
        self, topology: Topology, namespace: Namespace, name: str, example: Path, directory: Path
    ) -> None:
        self.title: Final = f"{name}: kube-ipsec"
        self._namespace: Final = namespace
        self._before = footprint(namespace)
        self._gateway: Final = GatewayProcess(topology, namespace, directory)
        self._peers: Final = [
            document["metadata"]["name"]
            for document in documents(example)
            if document["kind"] == "IPsecPeer"
        ]
        for path in sorted(example.glob("*.y*ml")):
            shutil.copy(path, self._gateway.manifests)

    def start(self) -> None:
        self._gateway.start()

    def wait_ready(self, timeout: float) -> None:
        for peer in self._peers:
            self._gateway.wait_condition(peer, timeout=timeout)

    def status(self) -> list[StatusRow]:
        rows = []
        for peer in self._peers:
            status = self._gateway.status("IPsecPeer", peer)
            ready = self._gateway.condition(peer, "Ready")
            children = status.get("childSAs", {})
            rows.append(
                StatusRow(
                    f"{self.title}  IPsecPeer/{peer}",
                    f"{ready.get('status', 'Unknown')} ({ready.get('reason', '-')})",
                    status.get("remoteAddress", "-"),
                    status.get("cipherSuite", "-"),
                    f"{children.get('installed', 0)} of {children.get('expected', 0)}",
                )
            )
        return rows

    def delete_peer(self) -> None:
        for path in self._gateway.manifests.glob("*.y*ml"):
            path.unlink()

    def wait_gone(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while left := left_behind(self._namespace, self._before):
            if time.monotonic() > deadline:
                raise LabError(f"{self.title} left behind: {'; '.join(left)}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._gateway.stop()
        self.wait_gone(5)

    def logs(self) -> list[Path]:
        return [self._gateway.log_path]


class StrongswanSite:
    """charon with the connection that the manifests of ``example`` describe."""

    def __init__(
        self, topology: Topology, namespace: Namespace, name: str, example: Path, directory: Path
    ) -> None:
        self.title: Final = f"{name}: strongSwan"
        self._charon: Final = Charon(topology, namespace, directory)
        self._connection: Final = connection_of(documents(example))

    def start(self) -> None:
        self._charon.start()
        self._charon.load(self._connection)

    def wait_ready(self, timeout: float) -> None:
        for child in self._connection.children:
            self._charon.wait_installed(child.name, timeout=timeout)

    def status(self) -> list[StatusRow]:
        return [
            StatusRow(
                f"{self.title}  {sa.name}",
                sa.state,
                sa.remote_host,
                sa.suite,
                f"{sum(c.state == 'INSTALLED' for c in sa.children)} of "
                f"{len(self._connection.children)}",
            )
            for sa in self._charon.sas()
        ]

    def delete_peer(self) -> None:
        """Nothing to do: our side's Delete must be enough."""

    def wait_gone(self, timeout: float) -> None:
        self._charon.wait_for(lambda sas: not sas, "its SAs are deleted", timeout=timeout)

    def stop(self) -> None:
        self._charon.stop()

    def logs(self) -> list[Path]:
        return [self._charon.log_path]


def connection_of(found: Sequence[dict[str, Any]]) -> Connection:
    """What an administrator of strongSwan would write down for the one peer of these manifests.

    Raises LabError for what the demo's examples do not use: other methods, several peers.
    """
    peers = [document for document in found if document["kind"] == "IPsecPeer"]
    if len(peers) != 1:
        raise LabError(f"strongSwan as a site needs exactly one IPsecPeer, not {len(peers)}")
    spec = peers[0]["spec"]
    try:
        authentication = spec["authentication"]
        reference = authentication["secretRef"]
        psk = _secret(found, reference["name"], reference.get("key", "psk"))
        local, remote = spec["localSubnets"], spec["remoteSubnets"]
    except KeyError as exc:
        raise LabError(f"strongSwan as a site needs {exc} in the IPsecPeer") from exc
    child = Child(
        name="lans",
        local_ts=tuple(local),
        remote_ts=tuple(remote),
        esp_proposals=("aes256gcm16-x25519", "aes128gcm16-x25519"),
    )
    return Connection(
        name=peers[0]["metadata"]["name"],
        psk=psk,
        children=(child,),
        local_addrs=(spec["localAddress"],) if "localAddress" in spec else (),
        remote_addrs=(spec["address"],) if "address" in spec else (),
        local_id=_identity(authentication.get("localID")),
        remote_id=_identity(authentication.get("remoteID")),
        proposals=("aes256gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-ecp256"),
    )


def _secret(found: Sequence[dict[str, Any]], name: str, key: str) -> bytes:
    for document in found:
        if document["kind"] == "Secret" and document["metadata"]["name"] == name:
            if key in document.get("stringData", {}):
                raw = str(document["stringData"][key]).encode()
            else:
                raw = base64.b64decode(document["data"][key])
            return bytes.fromhex(raw[2:].decode()) if raw.startswith(b"0x") else raw
    raise LabError(f"no Secret {name} with the key {key} in the example")


def _identity(entry: dict[str, str] | None) -> str:
    """In strongSwan's notation; empty is its address."""
    if entry is None or entry["type"] in ("auto", "ignore"):
        return ""
    prefix = {"fqdn": "fqdn:", "email": "email:", "keyID": "keyid:"}.get(entry["type"], "")
    return prefix + entry["value"]
