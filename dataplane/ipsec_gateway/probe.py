"""What this kernel's IPsec can do, found by trying.

Each algorithm is tried by adding an SA between two addresses that nobody has (TEST-NET-1,
RFC 5737, and the documentation prefix of RFC 3849) and taking it away at once. No policy leads to
it, so no packet ever meets it. The kernel loads the modules it needs meanwhile, as it would later.
"""

from __future__ import annotations

import errno
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import Final, TypeVar

from ipsec_gateway.ipsec.abilities import Abilities, ciphers
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_algorithms import CIPHERS, MACS, algorithm_attributes
from ipsec_gateway.ipsec.xfrm_attributes import (
    Encapsulation,
    Replay,
    direction_attribute,
)
from ipsec_gateway.ipsec.xfrm_messages import Message, State, delete_state, put_state
from ipsec_gateway.ipsec.xfrm_netlink import XfrmSocket
from ipsec_gateway.ipsec.xfrm_numbers import StateFlag
from ipsec_gateway.marks import REQID_BASE
from ipsec_ike.crypto.transforms import encr_key_octets, integ_key_octets, is_supported
from ipsec_ike.numbers import Encr, Integ, Protocol, TransformType
from ipsec_ike.proposal import Transform

_ENDS: Final = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_SHA256: Final = Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128)
_NULL: Final = Transform(TransformType.ENCR, Encr.NULL)
_ESP, _AH = 50, 51
#: No direction: kernels that know the attribute refuse it, the others do not look.
_NO_DIRECTION: Final = 3
#: Seconds for an interface to be made, a module to be loaded included.
_PATIENCE: Final = 30.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Kernel:
    """What there is. ``lacks`` says in words what is missing, empty if ESP works."""

    abilities: Abilities
    esp: frozenset[int]
    ah: frozenset[int]
    directions: bool
    encapsulation: bool
    interfaces: bool
    lacks: str

    @property
    def usable(self) -> bool:
        """Whether tunnels can be carried at all."""
        return not self.lacks

    def __str__(self) -> str:
        """One line for the log."""
        names = sorted({CIPHERS[t.id].name for t in self.abilities.encryption})
        has = [
            f"ESP for IPv{' and '.join(map(str, sorted(self.esp)))}: {', '.join(names)}",
            *(["ESN"] if self.abilities.esn else []),
            *([f"AH for IPv{' and '.join(map(str, sorted(self.ah)))}"] if self.ah else []),
            *(["ESP in UDP"] if self.encapsulation else []),
            *(["SA directions"] if self.directions else []),
            *(["xfrm interfaces"] if self.interfaces else []),
        ]
        return "; ".join(has)


def probe() -> Kernel:
    """Try everything. Takes a few milliseconds, once modules are loaded. Raises DataplaneError
    where there is no XFRM at all, or no right to use it."""
    kernel = XfrmSocket()
    try:
        return _Prober(kernel).run()
    finally:
        kernel.close()


class _Prober:
    def __init__(self, kernel: XfrmSocket) -> None:
        self._kernel: Final = kernel
        # Somebody else's SA between these addresses would have to have this SPI, too.
        self._spi = 0x10000000 | secrets.randbits(24)

    def run(self) -> Kernel:
        tried = sorted(
            t
            for t in ciphers(tuple(CIPHERS)) | ciphers(tuple(CIPHERS), (0,))
            if is_supported(Protocol.ESP, t)
        )
        macs = [Transform(TransformType.INTEG, each) for each in sorted(MACS)]
        encr = self._works({t: self._esp(t, None if CIPHERS[t.id].icv else _SHA256) for t in tried})
        plain = next((t for t in encr if not CIPHERS[t.id].icv), _NULL)
        integ = self._works({m: self._esp(plain, m) for m in macs})
        ah = self._works({m: self._ah(m) for m in macs})
        suite = next(iter(encr), Transform(TransformType.ENCR, Encr.AES_CBC, 128))
        mac = None if CIPHERS[suite.id].icv else _SHA256
        esp = self._works({v: self._esp(suite, mac, version=v) for v in _ENDS})
        ah_versions = self._works({v: self._ah(next(iter(ah), _SHA256), version=v) for v in _ENDS})
        replay = Replay(32).attribute()
        encap = Encapsulation(4500, 4500).attribute()
        extended = self._works({0: self._esp(suite, mac, replay, flags=StateFlag.ESN)})
        interfaces = _has_interfaces()
        return Kernel(
            abilities=Abilities(
                dataplane="xfrm",
                encryption=frozenset(encr),
                esp_integrity=frozenset(m.id for m in integ),
                ah_integrity=frozenset(m.id for m in ah),
                transport=True,
                esn=bool(extended),
                interfaces=interfaces,
                headers=True,
                offload=True,
            ),
            esp=frozenset(esp),
            ah=frozenset(ah_versions),
            directions=self._knows_directions(suite, mac),
            encapsulation=bool(self._works({0: self._esp(suite, mac, encap)})),
            interfaces=interfaces,
            lacks="" if encr else self._why(suite, mac),
        )

    def _esp(
        self,
        encryption: Transform,
        integrity: Transform | None,
        more: bytes = b"",
        *,
        version: int = 4,
        flags: int = 0,
    ) -> tuple[Message, Message]:
        key = secrets.token_bytes(encr_key_octets(encryption))
        if encryption.id == Encr.DES3:
            # Three different keys: the kernel may refuse others.
            key = bytes(range(len(key)))
        values = algorithm_attributes(
            encryption, key, integrity, secrets.token_bytes(integ_key_octets(integrity))
        )
        return self._state(_ESP, values + more, version, flags)

    def _ah(self, integrity: Transform, *, version: int = 4) -> tuple[Message, Message]:
        key = secrets.token_bytes(integ_key_octets(integrity))
        return self._state(_AH, algorithm_attributes(None, b"", integrity, key), version, 0)

    def _state(
        self, protocol: int, values: bytes, version: int, flags: int
    ) -> tuple[Message, Message]:
        """(add, delete) of one SA."""
        self._spi += 1
        source, destination = _ENDS[version]
        state = State(
            spi=self._spi,
            protocol=protocol,
            source=source,
            destination=destination,
            # Ours, so that a gateway that is killed meanwhile leaves nothing that nobody removes.
            reqid=REQID_BASE,
            flags=flags | StateFlag.AF_UNSPEC,
        )
        return put_state(state, values), delete_state(self._spi, protocol, destination)

    def _works(self, pairs: dict[_T, tuple[Message, Message]]) -> list[_T]:
        """What the kernel takes, in the order of ``pairs``."""
        results = self._kernel.execute([m for pair in pairs.values() for m in pair])
        refused = next((e for e in results if e is not None and e.number == errno.EPERM), None)
        if refused is not None:
            raise DataplaneError(f"{refused}: run it as root, or with CAP_NET_ADMIN")
        return [key for key, error in zip(pairs, results[::2], strict=True) if error is None]

    def _knows_directions(self, suite: Transform, mac: Transform | None) -> bool:
        add, delete = self._esp(suite, mac, direction_attribute(_NO_DIRECTION))
        error, _ = self._kernel.execute((add, delete))
        return error is not None and error.number in (errno.ERANGE, errno.EINVAL)

    def _why(self, suite: Transform, mac: Transform | None) -> str:
        """Why not even one suite works."""
        error, _ = self._kernel.execute(self._esp(suite, mac))
        if error is not None and error.number == errno.EPROTONOSUPPORT:
            return "this kernel has no ESP (module esp4, CONFIG_INET_ESP)"
        return f"this kernel has no cipher for ESP ({error})"


def _has_interfaces() -> bool:
    """Whether there are xfrm interfaces; one is made in a network namespace of its own."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if unshare is None or ip is None:
        return False
    command = (unshare, "--net", ip, "link", "add", "probe", "type", "xfrm", "if_id", "1")
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False)  # noqa: S603  # constant words
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
