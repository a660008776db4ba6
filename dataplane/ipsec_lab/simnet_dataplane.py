"""A data plane without packets: which SAs each end has, and the promises the engine makes about
them.

Checked with every action, whatever the network does:

- A key protects one SA: it is installed at most once for sending and once for receiving, under one
SPI,
  at two different ends.
- An SPI is received by one SA at a time; an SA that is moved exists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipsec_ike.actions import AddSa, DeleteSa, SaSpec, UpdateSa
from ipsec_ike.identifiers import Direction


class Broken(AssertionError):
    """The engine broke a promise."""


@dataclass(frozen=True, slots=True)
class Use:
    """Where a key was installed."""

    node: str
    direction: Direction
    spi: int


class KeyLedger:
    """All keys that were ever installed at any end of one network."""

    def __init__(self) -> None:
        self._uses: dict[bytes, list[Use]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def record(self, node: str, spec: SaSpec) -> None:
        """Raises Broken if the key is in use for something else."""
        key = spec.encryption_key.reveal() + spec.integrity_key.reveal()
        use = Use(node, spec.id.direction, spec.id.spi)
        uses = self._uses.setdefault(key, [])
        if not key:
            raise Broken(f"{use}: SA without a key")
        for other in uses:
            if other.spi != use.spi or other.direction is use.direction or other.node == node:
                raise Broken(f"one key for two SAs: {other} and {use}")
        uses.append(use)


class ModelDataplane:
    """The SAs of one end. ``inbound`` by SPI; ``outbound`` by reqid, the one in use last."""

    def __init__(self, node: str, ledger: KeyLedger) -> None:
        self.node = node
        self.inbound: dict[int, SaSpec] = {}
        self.outbound: dict[int, list[SaSpec]] = {}
        self._ledger = ledger

    def perform(self, action: AddSa | UpdateSa | DeleteSa) -> None:
        """Raises Broken where the action cannot be right."""
        match action:
            case AddSa(spec):
                self._add(spec)
            case UpdateSa():
                self._update(action)
            case DeleteSa():
                self._delete(action)

    def sending(self, reqid: int) -> SaSpec | None:
        """The SA that protects a packet of this policy now."""
        sas = self.outbound.get(reqid)
        return sas[-1] if sas else None

    @property
    def all_outbound(self) -> list[SaSpec]:
        """Every outbound SA."""
        return [spec for sas in self.outbound.values() for spec in sas]

    def _add(self, spec: SaSpec) -> None:
        spi = spec.id.spi
        if spi < 0x100:
            raise Broken(f"{self.node}: SPI {spi} is reserved")
        if spec.id.direction is Direction.IN:
            if spi in self.inbound:
                raise Broken(f"{self.node}: inbound SPI {spi:08x} is installed twice")
            self._ledger.record(self.node, spec)
            self.inbound[spi] = spec
        else:
            self._ledger.record(self.node, spec)
            self.outbound.setdefault(spec.reqid, []).append(spec)

    def _update(self, update: UpdateSa) -> None:
        spi = update.id.spi
        if update.id.direction is Direction.IN:
            old = self.inbound.get(spi)
            if old is None:
                raise Broken(f"{self.node}: update of unknown inbound SPI {spi:08x}")
            self.inbound[spi] = _moved(old, update)
            return
        for sas in self.outbound.values():
            for position, old in enumerate(sas):
                if old.id == update.id:
                    sas[position] = _moved(old, update)
                    return
        raise Broken(f"{self.node}: update of unknown outbound SPI {spi:08x}")

    def _delete(self, action: DeleteSa) -> None:
        if action.id.direction is Direction.IN:
            self.inbound.pop(action.id.spi, None)
            return
        for reqid, sas in tuple(self.outbound.items()):
            left = [spec for spec in sas if spec.id != action.id]
            if left:
                self.outbound[reqid] = left
            else:
                del self.outbound[reqid]


def _moved(spec: SaSpec, update: UpdateSa) -> SaSpec:
    return replace(
        spec,
        id=replace(spec.id, destination=update.destination.address),
        source=update.source,
        destination=update.destination,
        encap=update.encap,
    )
