"""Kernel variables that tunnels need, changed as little as possible and put back afterwards.

=============================  =====================================================================
variable                       when it is set
=============================  =====================================================================
net.ipv4.ip_forward            1, if some tunnel has a local IPv4 network that is not just this node
net.ipv6.conf.all.forwarding   1, likewise for IPv6
net.ipv6.conf.X.accept_ra      2 instead of 1 on every interface before that: a node that forwards
                               would else lose the default route that it learned from its router
=============================  =====================================================================

What was there before is kept in a file that only root can read, so that a gateway that was killed
does not leave its changes for good: the next one puts them back when it ends. A variable that
somebody else has changed meanwhile is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from ipsec_gateway import netns, privatefiles
from ipsec_gateway.classify import Address, Network

#: Where earlier values are kept: gone with the next boot, as the changes are.
MEMORY: Final = Path("/run/kube-ipsec")
_ROOT: Final = Path("/proc/sys/net")
_FORWARD: Final = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def forwards(
    pairs: Iterable[tuple[Network, Network]], addresses: Iterable[Address]
) -> frozenset[int]:
    """IP versions in which this node carries traffic of others through (local, remote)."""
    own = {str(a) for a in addresses}
    return frozenset(
        local.version
        for local, _ in pairs
        if local.num_addresses > 1 or str(local.network_address) not in own
    )


class Sysctls:
    """The variables of the network namespace that the caller is in."""

    def __init__(self, *, root: Path = _ROOT, memory: Path = MEMORY) -> None:
        self._root: Final = root
        self._folder: Final = memory
        #: Values by variable: before us, and as we set them.
        self._changed: dict[str, tuple[str, str]] | None = None

    @property
    def changed(self) -> Mapping[str, tuple[str, str]]:
        """What differs because of us: (before, now) by variable."""
        return dict(self._changed or {})

    def apply(self, versions: frozenset[int]) -> list[str]:
        """Have these IP versions forwarded. Returns what could not be done, with the remedy."""
        problems: list[str] = []
        if self._changed is None:
            try:
                self._changed = self._remembered()
            except OSError as exc:
                return [f"forwarding is left alone: what it was before us cannot be read: {exc}"]
        for version in sorted(versions):
            name = _FORWARD[version]
            now = self._read(name)
            if now is None or now != "0":
                continue
            wanted = {name: "1"}
            if version == 6:
                wanted = {**self._router_advertisements(), **wanted}
            for variable, value in wanted.items():
                problem = self._set(variable, value)
                if problem:
                    problems.append(problem)
                    break
        return problems

    def restore(self) -> list[str]:
        """Put back what is still as we set it. Returns what could not be put back."""
        try:
            changed = self._remembered() if self._changed is None else self._changed
        except OSError as exc:
            return [f"kernel variables are not put back: their values cannot be read: {exc}"]
        problems: list[str] = []
        # Forwarding first: it was set last.
        for variable, (before, now) in reversed(changed.items()):
            if self._read(variable) == now:
                try:
                    (self._root / variable).write_text(before)
                except OSError as exc:
                    problems.append(
                        f"{_dotted(variable)} stays {now} and was {before}: {exc.strerror}"
                    )
        self._changed = {}
        self._file().unlink(missing_ok=True)
        return problems

    def _router_advertisements(self) -> dict[str, str]:
        return {
            f"ipv6/conf/{each.parent.name}/accept_ra": "2"
            for each in sorted(self._root.glob("ipv6/conf/*/accept_ra"))
            if self._read(f"ipv6/conf/{each.parent.name}/accept_ra") == "1"
        }

    def _set(self, variable: str, value: str) -> str | None:
        before = self._read(variable)
        if before is None or before == value:
            return None
        assert self._changed is not None
        self._changed[variable] = (self._changed.get(variable, (before, ""))[0], value)
        try:
            privatefiles.write_object(self._file(), self._changed)
            (self._root / variable).write_text(value)
        except OSError as exc:
            del self._changed[variable]
            name = _dotted(variable)
            return (
                f"{name} is {before} and cannot be set to {value} ({exc.strerror}): on the node,"
                f" run sysctl -w {name}={value}"
            )
        return None

    def _read(self, variable: str) -> str | None:
        try:
            return (self._root / variable).read_text().strip()
        except OSError:
            # A kernel without IPv6, or an interface that has just gone.
            return None

    def _file(self) -> Path:
        """Of this network namespace: a lab, or a pod, has its own variables."""
        return self._folder / f"sysctls-{netns.identity()}.json"

    def _remembered(self) -> dict[str, tuple[str, str]]:
        """What is not ours to understand is left out: nothing is put back by guess. Raises OSError
        where it cannot be read now."""
        kept = privatefiles.read_object(self._file())
        return {
            name: (str(values[0]), str(values[1]))
            for name, values in kept.items()
            if isinstance(values, list) and len(values) == 2
        }


def _dotted(variable: str) -> str:
    """As ``sysctl`` takes it: a dot in the name of an interface is written as a slash."""
    return "net." + variable.translate(str.maketrans("/.", "./"))
