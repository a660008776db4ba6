"""SAs in octets: nothing is lost, nothing is shown."""

from dataclasses import replace

import pytest

from ipsec_gateway.ipsec.packed import PackedSa
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Handling, Lifetime, Offload
from ipsec_ike.identifiers import Direction
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, Integ, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.esp_wire import Wire


def variants(spec: SaSpec) -> list[SaSpec]:
    return [
        spec,
        replace(spec, id=replace(spec.id, direction=Direction.IN, destination="2001:db8::1")),
        replace(
            spec,
            destination=Endpoint("2001:db8::2", 4501),
            encryption=Transform(TransformType.ENCR, Encr.AES_CBC, 256),
            encryption_key=Secret(bytes(range(32))),
            integrity=Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128),
            integrity_key=Secret(b"i" * 32),
            esn=True,
            local_ts=(TrafficSelector.network("2001:db8::/48", protocol=17, start_port=53),) * 2,
            soft=Lifetime(seconds=10.5, bytes=1 << 40, packets=7, margin=0, jitter=0),
            handling=Handling(interface=9, copy_df=False, offload=Offload.OFF, mark=0x47),
            peer="default/hq",
            child="hq",
        ),
    ]


@pytest.mark.parametrize("which", range(3))
def test_what_is_packed_is_unpacked(wire: Wire, which: int) -> None:
    spec = variants(wire.spec())[which]
    packed = PackedSa(PackedSa.of(spec).octets)
    assert packed.unpack() == spec
    assert (packed.id, packed.reqid) == (spec.id, spec.reqid)


def test_it_shows_no_key(wire: Wire) -> None:
    spec = replace(wire.spec(), encryption_key=Secret(b"k" * 20))
    assert "kk" not in repr(PackedSa.of(spec))
