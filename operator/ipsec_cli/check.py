"""``kube-ipsec check``: the tests of ``helm test``, each a pod of the chart.

What is judged is pure (``accepted``, ``established``, ``places``); what is pinged comes from the
resources. A line for each peer says what was found, and for what failed what to do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

import click
from kubernetes import client, config

from ipsec_api.kinds import GROUP, PEER, VERSION
from ipsec_cli.ping import NoPing, TooBig, ping

Peer = Mapping[str, Any]

#: MTU that every link of IPv6 has (RFC 8200 section 5), and that every tunnel of ours has.
_SMALLEST: Final = 1280


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``good`` None: there was nothing to test."""

    what: str
    good: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    """An address behind a tunnel, and the MTU that its peer says the tunnel has."""

    address: str
    mtu: int


def accepted(peers: Iterable[Peer]) -> Iterator[Finding]:
    """Each peer is accepted, and what it refers to is there."""
    for peer in peers:
        yield _conditions(peer, ("Accepted", "ResolvedRefs"))


def established(peers: Iterable[Peer]) -> Iterator[Finding]:
    """Each peer that we call has its SAs."""
    for peer in peers:
        if peer["spec"].get("disabled"):
            yield Finding(_name(peer), None, "disabled")
        elif peer["spec"].get("passive"):
            yield Finding(_name(peer), None, "passive: it calls us, when it likes to")
        else:
            yield _conditions(peer, ("Established",))


def addresses(peers: Iterable[Peer]) -> Iterator[str]:
    """Where peers themselves are, one name or address each."""
    for peer in peers:
        address = peer["spec"].get("address", "")
        if address and "/" not in address and not peer["spec"].get("disabled"):
            yield address


def places(peers: Sequence[Peer], targets: Iterable[str]) -> Iterator[Place]:
    """The targets, or those of the peers' probes where there are none."""
    given = list(targets)
    if not given:
        given = [
            target
            for peer in peers
            if not peer["spec"].get("disabled")
            for target in peer["spec"].get("probe", {}).get("targets", ())
        ]
    for target in dict.fromkeys(given):
        yield Place(target, _mtu(peers, target))


def _mtu(peers: Iterable[Peer], target: str) -> int:
    address = ip_address(target)
    for peer in peers:
        for network in peer["spec"].get("remoteSubnets", ()):
            if address in ip_network(network):
                return int(peer.get("status", {}).get("effectiveMTU") or _SMALLEST)
    return _SMALLEST


def _name(peer: Peer) -> str:
    return f"{peer['metadata']['namespace']}/{peer['metadata']['name']}"


def _conditions(peer: Peer, types: Iterable[str]) -> Finding:
    states = {c["type"]: c for c in peer.get("status", {}).get("conditions", ())}
    for kind in types:
        state = states.get(kind)
        if state is None:
            return Finding(_name(peer), False, f"{kind} is not known yet: does the operator run?")
        if state["status"] != "True":
            return Finding(_name(peer), False, f"{state['reason']}: {state['message']}")
    return Finding(_name(peer), True, ", ".join(types))


def answers(where: str) -> Finding:
    """Whether an address, or one of a name's, answers. Raises NoPing."""
    try:
        found = [where] if _is_address(where) else _resolved(where)
    except socket.gaierror as exc:
        return Finding(where, False, f"cannot be resolved ({exc.strerror})")
    for address in found:
        if (seconds := ping(address)) is not None:
            return Finding(where, True, f"{seconds * 1000:.1f} ms")
    return Finding(where, False, "no answer to ping")


def fits(place: Place) -> Finding:
    """Whether packets as large as the tunnel's MTU pass without being cut. Raises NoPing."""
    what = f"{place.address}, {place.mtu} octets"
    try:
        if (seconds := ping(place.address, place.mtu, dont_fragment=True)) is not None:
            return Finding(what, True, f"{seconds * 1000:.1f} ms")
    except TooBig:
        return Finding(what, False, "a link on the way takes less: set spec.mtu of the peer lower")
    if ping(place.address) is None:
        return Finding(what, False, "no answer to ping of any size")
    return Finding(
        what, False, "small packets pass, large ones vanish: set spec.mtu of the peer lower"
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _resolved(name: str) -> list[str]:
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(name, None)))


def _read(namespaces: Sequence[str]) -> list[Peer]:
    try:
        config.load_config()  # type: ignore[no-untyped-call]  # it has no annotations
    except config.ConfigException as exc:
        raise click.ClickException(f"no cluster: {exc}; set KUBECONFIG") from None
    with client.ApiClient() as api:
        custom: Any = client.CustomObjectsApi(api)
        try:
            if not namespaces:
                found = [custom.list_cluster_custom_object(GROUP, VERSION, PEER.plural)]
            else:
                found = [
                    custom.list_namespaced_custom_object(GROUP, VERSION, namespace, PEER.plural)
                    for namespace in namespaces
                ]
        except client.ApiException as exc:
            raise click.ClickException(
                f"the API server refuses ({exc.status} {exc.reason}): {str(exc.body)[:300]}"
            ) from None
    return [peer for page in found for peer in page["items"]]


_TESTS: Final[Mapping[str, Callable[[Sequence[Peer], Sequence[str]], Iterator[Finding]]]] = {
    "config": lambda peers, _: accepted(peers),
    "established": lambda peers, _: established(peers),
    "gateway": lambda peers, _: map(answers, dict.fromkeys(addresses(peers))),
    "ping": lambda peers, targets: (answers(p.address) for p in places(peers, targets)),
    "size": lambda peers, targets: map(fits, places(peers, targets)),
}


@click.command()
@click.argument("test", type=click.Choice(list(_TESTS)))
@click.option(
    "--namespace", "namespaces", multiple=True, help="Only peers of this one. May be repeated."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Address in a remote network to ping, in place of the probes' targets. May be repeated.",
)
def check(test: str, namespaces: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Test the peers of a cluster: one of the tests of `helm test`."""
    for target in targets:
        if not _is_address(target):
            raise click.BadParameter(f"{target!r} is no IP address", param_hint="--target")
    try:
        findings = list(_TESTS[test](_read(namespaces), targets))
    except NoPing as exc:
        raise click.ClickException(str(exc)) from None
    for finding in findings:
        mark = {True: "ok", False: "bad", None: "-"}[finding.good]
        click.echo(f"{mark:4}{finding.what}: {finding.text}")
    if not findings:
        click.echo("-   there is nothing to test: no IPsecPeer, or no target")
    if any(finding.good is False for finding in findings):
        raise click.exceptions.Exit(1)
