"""SA specifications and inner packets for tests of ESP."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.ipsec.packet import ones_sum, set_v4_checksum
from ipsec_gateway.ipsec.tun import VNET
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Mode
from ipsec_ike.crypto.transforms import esp_transform
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, Integ, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector

NETS_A: Final = (TrafficSelector.network("10.1.0.0/24"), TrafficSelector.network("fd00:1::/64"))
NETS_B: Final = (TrafficSelector.network("10.2.0.0/24"), TrafficSelector.network("fd00:2::/64"))

#: Every cipher class, by a readable name: (encryption, integrity).
SUITES: Final[dict[str, tuple[Encr, int, Integ | None]]] = {
    "gcm16-128": (Encr.AES_GCM_16, 128, None),
    "gcm16-256": (Encr.AES_GCM_16, 256, None),
    "gcm12": (Encr.AES_GCM_12, 128, None),
    "gcm8": (Encr.AES_GCM_8, 192, None),
    "ccm16": (Encr.AES_CCM_16, 128, None),
    "ccm8": (Encr.AES_CCM_8, 128, None),
    "chacha": (Encr.CHACHA20_POLY1305, 0, None),
    "cbc-sha256": (Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128),
    "cbc-sha512": (Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256),
    "cbc-sha1": (Encr.AES_CBC, 128, Integ.HMAC_SHA1_96),
    "3des-xcbc": (Encr.DES3, 0, Integ.AES_XCBC_96),
    "ctr-sha384": (Encr.AES_CTR, 128, Integ.HMAC_SHA2_384_192),
    "null-sha256": (Encr.NULL, 0, Integ.HMAC_SHA2_256_128),
}


def make_spec(
    suite: str = "gcm16-128",
    *,
    direction: Direction = Direction.OUT,
    key: bytes | None = None,
    **changes: Any,
) -> SaSpec:
    """An SA from a (10.1.0.0/24) to b (10.2.0.0/24), as a has it (OUT) or as b has it (IN)."""
    encr, bits, integ = SUITES[suite]
    encryption = Transform(TransformType.ENCR, encr, bits)
    integrity = None if integ is None else Transform(TransformType.INTEG, integ)
    layout = esp_transform(encryption, integrity)
    keys = key or bytes(range(1, 1 + layout.key_octets))
    local, remote = (NETS_A, NETS_B) if direction is Direction.OUT else (NETS_B, NETS_A)
    values: dict[str, Any] = {
        "id": SaId(direction, Protocol.ESP, 0x1000, "127.0.0.1"),
        "source": Endpoint("127.0.0.1", 4500),
        "destination": Endpoint("127.0.0.1", 4500),
        "encap": True,
        "reqid": 7,
        "mode": Mode.TUNNEL,
        "encryption": encryption,
        "encryption_key": Secret(keys[: layout.encryption_key]),
        "integrity": integrity,
        "integrity_key": Secret(keys[layout.encryption_key :]),
        "esn": True,
        "replay_window": 64,
        "local_ts": local,
        "remote_ts": remote,
        "peer": "lab/b",
        "child": "lan",
    }
    return SaSpec(**{**values, **changes})


def udp4(
    payload: bytes = b"x" * 32, *, src: str = "10.1.0.2", dst: str = "10.2.0.2", **header: int
) -> bytes:
    """An IPv4 UDP packet; ``tos``, ``fragment`` (the field), ``sport``, ``dport`` can be given."""
    udp = struct.pack(
        "!HHHH", header.get("sport", 1111), header.get("dport", 2222), 8 + len(payload), 0
    )
    body = udp + payload
    head = bytearray(
        struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            header.get("tos", 0),
            20 + len(body),
            77,
            header.get("fragment", 0),
            64,
            header.get("protocol", 17),
            0,
            socket.inet_aton(src),
            socket.inet_aton(dst),
        )
    )
    set_v4_checksum(head)
    return bytes(head) + body


def udp6(
    payload: bytes = b"x" * 32, *, src: str = "fd00:1::2", dst: str = "fd00:2::2", tos: int = 0
) -> bytes:
    """An IPv6 UDP packet."""
    udp = struct.pack("!HHHH", 1111, 2222, 8 + len(payload), 0) + payload
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (src, dst))
    return struct.pack("!IHBB", 6 << 28 | tos << 20, len(udp), 17, 64) + addresses + udp


def tcp(
    payload: bytes,
    *,
    version: int = 4,
    seq: int = 1000,
    flags: int = 0x10,
    options: bytes = bytes.fromhex("0101080a0000000100000002"),
    ident: int = 500,
    tos: int = 0,
    sport: int = 40000,
    source: str = "10.1.0.2",
) -> bytearray:
    """A TCP packet with all checksums right, DF set; ``source`` is for IPv4 alone."""
    segment = bytearray(
        struct.pack("!HHIIBBHHH", sport, 5001, seq, 9, (20 + len(options)) << 2, flags, 500, 0, 0)
    )
    segment += options + payload
    if version == 4:
        src, dst = socket.inet_aton(source), socket.inet_aton("10.2.0.2")
        head = bytearray(
            struct.pack(
                "!BBHHHBBH4s4s",
                0x45,
                tos,
                (20 + len(segment)) & 0xFFFF,
                ident & 0xFFFF,
                0x4000,
                64,
                6,
                0,
                src,
                dst,
            )
        )
        set_v4_checksum(head)
    else:
        src = socket.inet_pton(socket.AF_INET6, "fd00:1::2")
        dst = socket.inet_pton(socket.AF_INET6, "fd00:2::2")
        head = bytearray(struct.pack("!IHBB", 6 << 28 | tos << 20, len(segment), 6, 64) + src + dst)
    total = (ones_sum(src + dst) + 6 + len(segment) + ones_sum(segment)) % 65535
    struct.pack_into("!H", segment, 16, ~total & 0xFFFF)
    return head + segment


def tcp_ok(packet: bytes) -> bool:
    """Whether length fields and checksums of a TCP packet are right."""
    if packet[0] >> 4 == 4:
        l4, addresses = 20, packet[12:20]
        if struct.unpack_from("!H", packet, 2)[0] != len(packet) or ones_sum(packet[:20]):
            return False
    else:
        l4, addresses = 40, packet[8:40]
        if struct.unpack_from("!H", packet, 4)[0] != len(packet) - 40:
            return False
    return (ones_sum(addresses) + 6 + len(packet) - l4 + ones_sum(packet[l4:])) % 65535 == 0


def tso(payload: bytes, mss: int, *, version: int = 4, **header: Any) -> tuple[bytes, bytes]:
    """(virtio header, packet) of a large TCP packet as the kernel hands it over."""
    packet = tcp(payload, version=version, **header)
    l4 = 20 if version == 4 else 40
    addresses = packet[12:20] if version == 4 else packet[8:40]
    struct.pack_into("!H", packet, l4 + 16, (ones_sum(addresses) + 6 + len(packet) - l4) % 65535)
    kind = 1 if version == 4 else 4
    return VNET.pack(1, kind, l4 + 32, mss, l4, 16), bytes(packet)


def policy(source: TrafficSelector, destination: TrafficSelector, **changes: Any) -> PolicySpec:
    """An encrypt policy of reqid 7, with changes."""
    values: dict[str, Any] = {
        "id": PolicyId(PolicyDirection.OUT, source, destination),
        "action": PolicyAction.ENCRYPT,
        "priority": 10,
        "reqid": 7,
    }
    return PolicySpec(**{**values, **changes})
