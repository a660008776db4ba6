"""``make bench BENCH=suites``: every cipher and hash at three packet sizes, as the pages of routers
show them, with what the kernel does them with.

Each figure is the whole way of forwarded packets: encrypted by one gateway, decrypted by the other,
both on the same emulated processor. Only ratios count: beside each stands AES-128-GCM at that size.
The table takes about five minutes.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipsec_lab import guest_inside
from ipsec_lab.bench_kernel import by_hand, in_guest, say
from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_report import Row
from ipsec_lab.guest_forks import ForkClient
from ipsec_lab.kernel_rig import xfrm_states
from ipsec_lab.netns import LabError
from ipsec_lab.topology import Topology

#: Octets of the IP packet.
SIZES: Final = (64, 512, 1400)

#: The task in the guest.
SUITES: Final = "ipsec_lab.bench_suites:measure"

_UDP_SEGMENT: Final = 103
_SOL_UDP: Final = 17
#: Segments of one system call: as many as the kernel allows, or as fit into 64 KiB.
_SEGMENTS: Final = 60
_HEADERS: Final = 28
_TURNS: Final = 3
_SPI: Final = 0x1001
_PACKETS: Final = re.compile(r"lifetime current:\s+\d+\(bytes\), (\d+)\(packets\)")


@dataclass(frozen=True)
class Alg:
    """A part of a suite: its name for people, for ``ip xfrm`` and its key in octets."""

    name: str
    kernel: str
    key: int
    icv: int = 0

    @property
    def words(self) -> str:
        """Name, key and, if any, ICV length for ``ip xfrm``."""
        key = bytes(range(1, self.key + 1)).hex()
        return f"{self.kernel} 0x{key}" + (f" {self.icv}" if self.icv else "")


AEADS: Final = (
    Alg("aes128-gcm", "rfc4106(gcm(aes))", 20, 128),
    Alg("aes192-gcm", "rfc4106(gcm(aes))", 28, 128),
    Alg("aes256-gcm", "rfc4106(gcm(aes))", 36, 128),
    Alg("aes128-ccm", "rfc4309(ccm(aes))", 19, 128),
    Alg("aes256-ccm", "rfc4309(ccm(aes))", 35, 128),
    Alg("chacha20poly1305", "rfc7539esp(chacha20,poly1305)", 36, 128),
)
CIPHERS: Final = (
    Alg("aes128-cbc", "cbc(aes)", 16),
    Alg("aes192-cbc", "cbc(aes)", 24),
    Alg("aes256-cbc", "cbc(aes)", 32),
    Alg("aes128-ctr", "rfc3686(ctr(aes))", 20),
    Alg("aes256-ctr", "rfc3686(ctr(aes))", 36),
    Alg("3des", "cbc(des3_ede)", 24),
)
HASHES: Final = (
    Alg("md5", "hmac(md5)", 16, 96),
    Alg("sha1", "hmac(sha1)", 20, 96),
    Alg("sha256", "hmac(sha256)", 32, 128),
    Alg("sha384", "hmac(sha384)", 48, 192),
    Alg("sha512", "hmac(sha512)", 64, 256),
)


def suites(settings: Settings) -> list[Row]:
    """Mbit/s and kpps of each suite and size."""
    return in_guest(SUITES, settings, counted=True)


def measure(arguments: Mapping[str, Any], _forks: ForkClient) -> int:
    """The task in the guest."""
    quick = bool(arguments["quick"])
    seconds = 0.2 if quick else 1.0
    chosen = [(a.name, f"aead {a.words}") for a in AEADS]
    chosen += [
        (f"{c.name} {h.name}", f"enc {c.words} auth-trunc {h.words}")
        for c in CIPHERS
        for h in HASHES
    ]
    if quick:
        chosen = chosen[:1] + chosen[-1:]
    try:
        with Topology() as top:
            first: dict[int, float] = {}
            for name, algorithms in chosen:
                for site in ("a", "b"):
                    top.gateway(site).ip("xfrm state flush", "xfrm policy flush")
                by_hand(top, algorithms)
                for size in SIZES:
                    rate = _packets_per_second(top, size, seconds)
                    first.setdefault(size, rate)
                    say(_row(name, size, rate, first[size], _driver(algorithms)))
    except Exception as exc:  # the host has to hear of whatever went wrong
        guest_inside.say({"problem": f"{type(exc).__name__}: {exc}"})
        raise
    return 0


def _row(name: str, size: int, rate: float, first: float, driver: str) -> Row:
    return Row(
        what=f"suite {name}, {size} octets, {rate / 1e3:.3g} kpps",
        unit="Mbit/s",
        ours=(rate * size * 8 / 1e6,),
        theirs=(first * size * 8 / 1e6,),
        reference=AEADS[0].name,
        # Once for each suite; what it is measured with, once for all.
        note=f"the kernel uses {driver}" if size == SIZES[0] else "",
    )


def _packets_per_second(top: Topology, size: int, seconds: float) -> float:
    """Decrypted packets of ``size`` octets a second."""
    payload = size - _HEADERS
    burst = bytes(payload * min(_SEGMENTS, 65000 // payload))
    with top.lan_a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((top.b.host(), 9))
        sender.setsockopt(_SOL_UDP, _UDP_SEGMENT, payload)
        _send(sender, burst)  # the way is found, and the SA is warm
        time.sleep(0.2)
        # The best of some turns: the host may be busy with something else.
        rate = max(_turn(top, sender, burst, seconds / _TURNS) for _ in range(_TURNS))
    if not rate:
        raise LabError(f"no packet of {size} octets was decrypted")
    return rate


def _turn(top: Topology, sender: socket.socket, burst: bytes, seconds: float) -> float:
    before, start = _decrypted(top), time.monotonic()
    while time.monotonic() - start < seconds:
        _send(sender, burst)
    elapsed = time.monotonic() - start
    time.sleep(0.05)
    return (_decrypted(top) - before) / elapsed


def _send(sender: socket.socket, burst: bytes) -> None:
    try:
        sender.send(burst)
    except ConnectionRefusedError:  # nobody listens there, and ICMP said so
        sender.send(burst)


def _decrypted(top: Topology) -> int:
    (state,) = (each for each in xfrm_states(top.gw_b) if each.spi == _SPI)
    found = _PACKETS.search(" ".join(state.text.split()))
    if found is None:
        raise LabError(f"no counter in {state.text}")
    return int(found[1])


def _driver(algorithms: str) -> str:
    """The implementation that the kernel prefers, such as ``rfc4106-gcm-aesni``."""
    words = algorithms.split()
    names = [words[1]] if words[0] == "aead" else [words[1], words[4]]
    return " and ".join(_preferred(name) for name in names)


def _preferred(name: str) -> str:
    best = (-1, "?")
    for block in Path("/proc/crypto").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(\w+)\s*: (.*)$", block, re.MULTILINE))
        if fields.get("name") == name:
            best = max(best, (int(fields["priority"]), fields["driver"]))
    return best[1]
