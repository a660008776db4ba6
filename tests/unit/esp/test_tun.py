"""What is said where a TUN device cannot be had, and what an inner packet may measure."""

import errno
from collections.abc import Callable

import pytest

from ipsec_gateway.ipsec import tun
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.cipher import EspCipher
from ipsec_gateway.ipsec.esp import sealed_length
from ipsec_gateway.ipsec.mtu import inner_mtu
from ipsec_ike.inputs import Endpoint
from ipsec_lab.esp_packets import SUITES, make_spec


def test_the_device_node_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "_CLONE", "/dev/net/no-such-tun")
    with pytest.raises(
        DataplaneError, match=r"/dev/net/no-such-tun cannot be opened: No such.*tun"
    ):
        tun.open_tun("ipsec0")


def refusing(code: int) -> Callable[..., int]:
    def ioctl(*arguments: object) -> int:
        raise OSError(code, "refused")

    return ioctl


def test_the_capability_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "_CLONE", "/dev/null")
    monkeypatch.setattr("fcntl.ioctl", refusing(errno.EPERM))
    with pytest.raises(DataplaneError, match=r"TUN device ipsec0: .*CAP_NET_ADMIN is missing"):
        tun.open_tun("ipsec0")


def test_the_device_cannot_be_brought_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.ioctl", refusing(errno.ENODEV))
    with pytest.raises(DataplaneError, match="TUN device ipsec0 cannot be set up: refused"):
        tun.bring_up("ipsec0", 1400)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("encap", [True, False])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("path", [1500, 1501, 1280, 9000])
def test_the_largest_inner_packet_fits_and_one_octet_more_does_not(
    suite: str, encap: bool, outer: int, path: int
) -> None:
    address = "192.0.2.2" if outer == 4 else "2001:db8::2"
    spec = make_spec(suite, encap=encap, destination=Endpoint(address, 4500))
    cipher = EspCipher(spec)
    headers = (20 if outer == 4 else 40) + (8 if encap else 0)
    mtu = inner_mtu(path, spec)
    assert headers + sealed_length(cipher, mtu) <= path
    assert headers + sealed_length(cipher, mtu + 1) > path
