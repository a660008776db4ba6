"""Sizes of inner packets: against the arithmetic of RFC 4303, 4302 and 3948 by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipsec_gateway.sizes import Sizes, child_mtu, overhead
from ipsec_ike.inputs import Endpoint
from ipsec_ike.sa.info import ChildSaInfo, IkeSaInfo
from ipsec_ike.selectors import TrafficSelector

CHILD = ChildSaInfo(
    name="c",
    reqid=1,
    spi_in=1,
    spi_out=2,
    state="installed",
    outbound=True,
    suite="AES_GCM_16_256",
    mode="tunnel",
    encap=False,
    local_ts=(TrafficSelector.network("10.1.0.0/16"),),
    remote_ts=(TrafficSelector.network("10.2.0.0/16"),),
    created_at=0.0,
    rekey_at=1.0,
    expires_at=2.0,
)


def sa(*children: ChildSaInfo, remote: str = "192.0.2.2", peer: str = "default/hq") -> IkeSaInfo:
    return IkeSaInfo(
        peer=peer,
        spi_i=bytes(8),
        spi_r=bytes(8),
        initiator=True,
        state="established",
        local=Endpoint("192.0.2.1", 500),
        remote=Endpoint(remote, 500),
        local_id="",
        remote_id="",
        suite="",
        nat_local=False,
        nat_remote=False,
        established_at=0.0,
        rekey_at=1.0,
        expires_at=2.0,
        children=children,
    )


@pytest.mark.parametrize(
    ("suite", "version", "encap", "mode", "largest"),
    [
        # 1500 - 20 - 8 - 8 - 16 = 1448, a multiple of 4; two octets of trailer.
        ("AES_GCM_16_256", 4, False, "tunnel", 1446),
        ("AES_GCM_16_256/ESN", 4, False, "tunnel", 1446),
        # 1440 with UDP, 1428 over IPv6.
        ("AES_GCM_16_256", 4, True, "tunnel", 1438),
        ("AES_GCM_16_128", 6, False, "tunnel", 1426),
        # 1500 - 20 - 8 - 16 - 16 = 1440, a multiple of 16.
        ("AES_CBC_256/HMAC_SHA2_256_128", 4, False, "tunnel", 1438),
        # 1432 - 1432 % 16 = 1424.
        ("AES_CBC_256/HMAC_SHA2_256_128", 4, True, "tunnel", 1422),
        # The IP header stays in front: 1446 + 20.
        ("AES_GCM_16_256", 4, False, "transport", 1466),
        # AH: 12 + 16 octets; in IPv6 a multiple of 8.
        ("HMAC_SHA2_256_128", 4, False, "tunnel", 1452),
        ("HMAC_SHA2_256_128", 6, False, "tunnel", 1428),
    ],
)
def test_largest_packet(suite: str, version: int, encap: bool, mode: str, largest: int) -> None:
    child = replace(CHILD, suite=suite, encap=encap, mode=mode)
    assert child_mtu(child, path=1500, version=version) == largest


def test_a_suite_that_nobody_knows_has_no_size() -> None:
    assert overhead("ROT13") is None
    assert Sizes(lambda *_: 1500).of([sa(replace(CHILD, suite="ROT13"))], 0.0).mtus == {}


def test_peers_and_clamps() -> None:
    six = replace(CHILD, remote_ts=(TrafficSelector.network("fd00:2::/64"),))
    encap = replace(CHILD, encap=True)
    sized = Sizes(lambda *_: 1500).of(
        [sa(CHILD, six), sa(encap, peer="default/branch", remote="192.0.2.3")], 0.0
    )
    assert sized.mtus == {"default/hq": 1446, "default/branch": 1438}
    (four,), (sixth,) = CHILD.remote_ts[0].networks, six.remote_ts[0].networks
    # Both peers have the same remote network: the smaller one counts.
    assert sized.clamps == {1438 - 40: (four,), 1446 - 60: (sixth,)}


def test_paths_are_looked_at_once_a_minute() -> None:
    asked: list[tuple[str, str]] = []

    def path(*ends: str) -> int:
        asked.append((ends[0], ends[1]))
        return 1400 if len(asked) > 1 else 1500

    sizes = Sizes(path)
    assert sizes.of([sa(CHILD)], 0.0).mtus == {"default/hq": 1446}
    assert sizes.of([sa(CHILD)], 59.0).mtus == {"default/hq": 1446}
    assert sizes.of([sa(CHILD)], 61.0).mtus == {"default/hq": 1346}
    assert asked == [("192.0.2.1", "192.0.2.2")] * 2
