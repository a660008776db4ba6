"""Who on this node drops what the tunnels carry, as far as that can be seen. Pure.

``docs/gateway.md`` (Forwarding) says what is looked at. A finding is sure where nothing in the
chain could accept the packets of some flow, and tells of those; otherwise it says "may".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ipsec_gateway.forward.chains import Base, Flow, outcome
from ipsec_gateway.forward.flows import Wish, wish_of
from ipsec_gateway.forward.listed import NFTABLES
from ipsec_gateway.forward.opening import FIREWALLD, remedy

#: Networks that a text names.
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why packets of a peer may not pass this node. ``sure``: some do not (one way, or of one
    network, say), and nothing could accept them. ``chains`` are the names of those that drop
    them."""

    sure: bool
    message: str
    chains: tuple[str, ...] = ()


def name_of(base: Base) -> str:
    """Such as ``chain FORWARD of table ip filter (iptables-nft)``."""
    tool = "nftables" if base.tool == NFTABLES else base.tool
    return f"chain {base.name} of table {base.family} {base.table} ({tool})"


def judged(
    bases: Iterable[Base], flows: Mapping[str, Iterable[Flow]], *, kernel: bool, opens: bool
) -> dict[str, Blocked]:
    """By peer. ``opens``: the gateway was told to see to it itself, and could not."""
    suspects = [base for base in bases if base.suspect]
    found = {}
    remedies = _Remedies(kernel=kernel)
    for peer, those in flows.items():
        texts, names, sure = [], [], False
        hint = ""
        for base in suspects:
            text, certain, helps = _judged(base, tuple(those), remedies)
            if text:
                hint = _HINT if helps and not opens else hint
                texts.append(text)
                names.append(name_of(base))
                sure = sure or certain
        if texts:
            found[peer] = Blocked(sure, "; ".join(texts) + hint, tuple(names))
    return found


_HINT: Final = (
    "; or have the gateway do it: --open-forward, in a cluster the chart's value"
    " gateway.openForward"
)


class _Remedies:
    """What helps, found out once for peers that need the same."""

    def __init__(self, *, kernel: bool) -> None:
        self._kernel: Final = kernel
        self._known: dict[tuple[int, frozenset[Wish], tuple[str, ...]], str] = {}

    def of(self, base: Base, wishes: frozenset[Wish], remote: list[str]) -> str:
        key = id(base), wishes, tuple(remote if base.table == FIREWALLD else ())
        if key not in self._known:
            self._known[key] = remedy(base, wishes, remote, kernel=self._kernel)
        return self._known[key]


def _judged(base: Base, flows: tuple[Flow, ...], remedies: _Remedies) -> tuple[str, bool, bool]:
    """What to say, whether it is sure, and whether the gateway could open it."""
    results = [(flow, outcome(base, flow)) for flow in flows if flow.version in base.versions]
    lost = [flow for flow, result in results if not result.passes]
    if not lost:
        return "", False, False
    surely = [flow for flow, result in results if result.sure and not result.passes]
    # Told is what is certain, if anything is; what helps is for all of it.
    told = surely or lost
    remote = _remote(told)
    shown = ", ".join(remote[:_SHOWN]) + (" and others" if len(remote) > _SHOWN else "")
    sides = {flow.side for flow in told}
    ways = "to and from" if len(sides) == 2 else "to" if sides == {"out"} else "from"
    verb = "drops" if surely else "may drop"
    seen = "" if surely else "; no rule is seen that surely accepts them"
    todo = remedies.of(base, frozenset(wish_of(flow) for flow in lost), _remote(lost))
    help_ = (
        f"on the node run {todo}" if todo else "a rule there names them, which is for you to mend"
    )
    text = f"{name_of(base)} {verb} packets {ways} {shown or 'the remote networks'}{seen}: {help_}"
    return text, bool(surely), bool(todo)


def _remote(flows: Iterable[Flow]) -> list[str]:
    return sorted({str(n) for f in flows if (n := f.source if f.side == "in" else f.destination)})
