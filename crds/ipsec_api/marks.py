"""Who is known to use which bits of the packet mark, and what marks of peers must say together.

A node has one 32-bit packet mark for everybody. The gateway's own three bits are an option of the
gateway and judged there.
"""

from __future__ import annotations

from typing import Final

from ipsec_api.credentials import Fault
from ipsec_api.peer import Routing
from ipsec_api.tunnel import ObjectRef

#: Bits of the packet mark that others are known to use.
OWNERS: Final = (
    ("kube-proxy", 0x0000C000),
    ("the CNI plugin portmap", 0x00002000),
    ("Cilium", 0x00000F00),
    ("the AWS VPC CNI", 0x00000080),
    ("Calico", 0xFFFF0000),
)


def owner_of(bits: int) -> str:
    """Who is known to use some of these bits, such as "kube-proxy (0xc000)"; empty: nobody."""
    return " and ".join(f"{name} ({its:#x})" for name, its in OWNERS if its & bits)


class TakenMarks:
    """Marks of the peers so far, which come oldest first."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int], ObjectRef] = {}

    def take(self, ref: ObjectRef, routing: Routing | None) -> list[Fault]:
        """What is wrong with the marks of a peer. Without a fault they are its own from now on."""
        if routing is None:
            return []
        marks = {
            "routingMark": routing.routing_mark,
            "connectionMark": routing.connection_mark,
        }
        faults: list[Fault] = []
        for name, value in marks.items():
            if value is None:
                continue
            where = f"spec.routing.{name}"
            other = self._owners.get((name, value))
            if value == 0:
                text = "0 is what everything without a mark has: take another value"
                faults.append((where, "Invalid", text))
            elif routing.allow_mark_conflict:
                continue
            elif name == "routingMark" and (owner := owner_of(value)):
                text = (
                    f"{value:#x} has bits of {owner}: take bits that nobody uses, such as 0x1 to"
                    " 0xf, or set allowMarkConflict: true where that does not run"
                )
                faults.append((where, "MarkConflict", text))
            elif other is not None:
                text = (
                    f"{other} has the same mark: take another one, or set allowMarkConflict: true"
                    " if both are meant"
                )
                faults.append((where, "MarkConflict", text))
        if not faults:
            for name, value in marks.items():
                if value is not None:
                    self._owners.setdefault((name, value), ref)
        return faults
