"""What must hold once the network is whole again and nothing is under way.

Each check gives one line per finding, none if all is well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ipsec_ike.actions import SaSpec
from ipsec_ike.engine import Engine
from ipsec_lab.simnet_dataplane import ModelDataplane

#: States in which nothing is under way, by IKE SA and child.
_SETTLED_IKE = "established"
_SETTLED_CHILD = "installed"


def unsettled(engine: Engine) -> Iterator[str]:
    """What is still under way at one end."""
    for sa in engine.snapshot():
        if sa.state.lower() != _SETTLED_IKE:
            yield f"IKE SA {sa.spi_i.hex()} is {sa.state}"
        for child in sa.children:
            if child.state.lower() != _SETTLED_CHILD:
                yield f"child {child.name} {child.spi_in:08x} is {child.state}"


def twins(one: ModelDataplane, other: ModelDataplane) -> Iterator[str]:
    """Every SA has its twin at the other end: same SPI, keys, algorithms, and mirrored
    selectors.
    """
    for sender, receiver in ((one, other), (other, one)):
        outbound = {spec.id.spi: spec for spec in sender.all_outbound}
        for spi, out in outbound.items():
            twin = receiver.inbound.get(spi)
            if twin is None:
                yield f"{sender.node} sends on {spi:08x}, which {receiver.node} does not have"
            else:
                yield from _differences(out, twin)
        for spi in receiver.inbound.keys() - outbound.keys():
            yield f"{receiver.node} receives on {spi:08x}, on which {sender.node} does not send"


def _differences(out: SaSpec, twin: SaSpec) -> Iterator[str]:
    pairs = {
        "encryption key": (out.encryption_key, twin.encryption_key),
        "integrity key": (out.integrity_key, twin.integrity_key),
        "cipher": (out.encryption, twin.encryption),
        "integrity": (out.integrity, twin.integrity),
        "ESN": (out.esn, twin.esn),
        "encapsulation": (out.encap, twin.encap),
        "mode": (out.mode, twin.mode),
        "protocol": (out.id.protocol, twin.id.protocol),
        "sender's selectors": (out.local_ts, twin.remote_ts),
        "receiver's selectors": (out.remote_ts, twin.local_ts),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            yield f"SA {out.id.spi:08x}: the ends differ in {what}"


def owned(engine: Engine, dataplane: ModelDataplane) -> Iterator[str]:
    """Every SA in the data plane belongs to a child of a live IKE SA, and every child has its
    SAs.
    """
    snapshot = engine.snapshot()
    children = [child for sa in snapshot for child in sa.children]
    node = dataplane.node
    yield from _compare(node, "inbound", set(dataplane.inbound), {c.spi_in for c in children})
    outbound = {spec.id.spi for spec in dataplane.all_outbound}
    yield from _compare(node, "outbound", outbound, {c.spi_out for c in children})


def _compare(node: str, what: str, installed: set[int], known: set[int]) -> Iterator[str]:
    for spi in installed - known:
        yield f"{node}: {what} SA {spi:08x} is installed but belongs to no IKE SA"
    for spi in known - installed:
        yield f"{node}: {what} SA {spi:08x} of a child is not installed"


def same_ike_sas(one: Engine, other: Engine) -> Iterator[str]:
    """Both ends have the same IKE SAs, in opposite roles."""
    ours = {(sa.spi_i, sa.spi_r, sa.initiator) for sa in one.snapshot()}
    theirs = {(sa.spi_i, sa.spi_r, not sa.initiator) for sa in other.snapshot()}
    for spi_i, spi_r, _ in sorted(ours ^ theirs):
        yield f"IKE SA {spi_i.hex()}/{spi_r.hex()} exists at one end only, or in the same role"


def complete(engine: Engine, names: Sequence[str]) -> Iterator[str]:
    """Every child that is wanted is there once."""
    found = Counter(child.name for sa in engine.snapshot() for child in sa.children)
    for name in names:
        if found[name] != 1:
            yield f"child {name} exists {found[name]} times"
