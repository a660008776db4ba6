"""``make demo-cluster``: the chart in the cluster of KUBECONFIG, from apply to tunnel Secret.

What a cluster without our images and nodes can show, and no more: the operator runs on this
machine, with its service account's rights, and no gateway runs, so that no packet passes. For
packets: ``make demo``, and ``helm install`` in a cluster that can pull the images.
"""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ipsec_api.cluster import tunnel_secret_name
from ipsec_api.kinds import API_VERSION
from ipsec_api.tunnel import TunnelConfig
from ipsec_lab.cluster import Cluster, Object, condition, until
from ipsec_lab.netns import LabError
from ipsec_lab.release import Release, installed


@click.command()
def demo() -> None:
    """Install the chart into the cluster of KUBECONFIG, show what becomes of a peer, remove it."""
    if "KUBECONFIG" not in os.environ:
        raise click.ClickException("set KUBECONFIG to a cluster of yours that has no kube-ipsec")
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kube-ipsec-demo-") as folder,
            closing(Cluster(Path(os.environ["KUBECONFIG"]))) as server,
        ):
            nodes = len(server.list("Node"))
            console.print(
                f"a cluster with {nodes} nodes; the operator runs on this machine, no gateway runs"
            )
            with installed(server, Path(folder)) as release:
                _story(console, release)
    except LabError as exc:
        console.print(f"[bold red]failed:[/] {exc}")
        sys.exit(1)
    console.print("[bold green]passed:[/] chart, CRDs and namespaces are gone again")


def _story(console: Console, release: Release) -> None:
    server, users = release.cluster, release.users
    console.print(f"helm install kube-ipsec charts/kube-ipsec -n {release.namespace}  [green]ok")
    with release.operator() as operator:
        operator.wait_leading()
        sets = until(
            lambda: (
                found if len(found := server.list("DaemonSet", release.namespace)) == 2 else None
            ),
            "the DaemonSets",
        )
        names = ", ".join(sorted(each["metadata"]["name"] for each in sets))
        console.print(f"the operator leads, and has made {names}  [green]ok")

        server.apply(_secret(users, "a key that nobody else knows"))
        started = time.monotonic()
        server.apply(_peer(users, "hq", "203.0.113.10", "10.20.0.0/16"))
        rendered = until(lambda: _tunnel(release), "the tunnel Secret")
        took = 1000 * (time.monotonic() - started)
        config = TunnelConfig.from_json(base64.b64decode(rendered["data"]["tunnel.json"]))
        selectors = ", ".join(f"{s.src} to {s.dst}" for p in config.policies for s in p.selectors)
        console.print(
            f"kubectl apply: after {took:.0f} ms gateways would read {rendered['metadata']['name']}"
            f" ({selectors})  [green]ok"
        )
        server.apply(_peer(users, "lab", "203.0.113.11", "10.20.7.0/24"))
        until(
            lambda: condition(server.get("IPsecPeer", users, "lab"), "Accepted").get("status"),
            "the second peer is judged",
        )
        until(
            lambda: condition(server.get("IPsecPeer", users, "hq"), "Ready").get("status"),
            "the first peer is judged",
        )
        console.print(_shown(server, users))

        before = rendered["metadata"]["resourceVersion"]
        server.delete("Secret", users, "key")
        until(
            lambda: (
                condition(server.get("IPsecPeer", users, "hq"), "ResolvedRefs").get("status")
                == "False"
            ),
            "the missing Secret is told",
        )
        kept = _tunnel(release)
        if kept is None or kept["metadata"]["resourceVersion"] != before:
            raise LabError("a missing Secret has changed the tunnel")
        said = condition(server.get("IPsecPeer", users, "hq"), "ResolvedRefs")["message"]
        console.print(f"its Secret deleted: the tunnel stays  [green]ok[/]\n  {said}")

        server.delete("IPsecPeer", users, "hq")
        until(lambda: _tunnel(release) is None, "the tunnel Secret is gone")
        console.print("kubectl delete: the peer is gone at once, and its tunnel  [green]ok")


def _shown(server: Cluster, namespace: str) -> Table:
    shown = Table(title="kubectl get ipsecpeers")
    columns = ("Name", "Remote", "Ready", "Reason")
    for column in (*columns, "what to do"):
        shown.add_column(column, overflow="fold")
    for item in server.list("IPsecPeer", namespace):
        name = item["metadata"]["name"]
        cells = server.table("IPsecPeer", namespace, name)
        message = condition(item, "Ready").get("message", "")
        shown.add_row(*(str(cells[column]) for column in columns), message)
    return shown


def _tunnel(release: Release) -> Object | None:
    name = tunnel_secret_name(release.users, "hq")
    return release.cluster.get("Secret", release.namespace, name)


def _secret(namespace: str, psk: str) -> Object:
    metadata = {"name": "key", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"psk": psk}}


def _peer(namespace: str, name: str, address: str, remote: str) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "IPsecPeer",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "address": address,
            "authentication": {"method": "preSharedKey", "secretRef": {"name": "key"}},
            "remoteSubnets": [remote],
        },
    }


if __name__ == "__main__":
    demo()
