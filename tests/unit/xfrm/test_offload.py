"""Network cards that compute SAs: when they are asked, and what a refusal comes to."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ipsec_gateway.ipsec import ethtool
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.ipsec.xfrm_attributes import attributes
from ipsec_gateway.ipsec.xfrm_messages import Message
from ipsec_gateway.ipsec.xfrm_netlink import XfrmError
from ipsec_gateway.ipsec.xfrm_numbers import Attr, Msg
from ipsec_gateway.ipsec.xfrm_offload import REFRESH, Offloads
from ipsec_gateway.ipsec.xfrm_sa import Treatment
from ipsec_ike.config import Handling, Offload
from ipsec_lab.xfrm_rig import pair

KEY = (50, 0x1000, "192.0.2.2")


class Kernel:
    """Takes SAs; ``refuses`` those for a card, ``device`` computes them otherwise (0: nobody)."""

    def __init__(self, *, refuses: bool = False, device: int = 0) -> None:
        self.refuses = refuses
        self.device = device
        self.said: list[tuple[str, bool]] = []
        self._body = b""

    def call(self, message: Message) -> None:
        offered = message.kind == Msg.NEWSA and Attr.OFFLOAD_DEV in _values(message)
        self.said.append((Msg(message.kind).name, offered))
        if offered and self.refuses:
            raise XfrmError(errno.EINVAL, "no")
        self._body = message.body

    def ask(self, message: Message) -> memoryview:
        self.said.append((Msg(message.kind).name, False))
        values = dict(_values(Message(Msg.NEWSA, self._body)))
        values.pop(Attr.OFFLOAD_DEV, None)
        body = bytearray(self._body[:224])
        if self.device:
            body += b"\x0c\x00\x1c\x00" + self.device.to_bytes(4, "little") + bytes(4)
        return memoryview(bytes(body))


def _values(message: Message) -> dict[int, Any]:
    return dict(attributes(memoryview(message.body)[224:]))


def install(
    kernel: Kernel, wanted: Offload, devices: Sequence[str] = ("eth9",), times: int = 1
) -> Offloads:
    offloads = Offloads(lambda: devices, lambda: 0.0)
    for _ in range(times):
        spec = pair(0x1000, handling=Handling(offload=wanted))[0]
        offloads.install(kernel, spec, KEY, Treatment())  # type: ignore[arg-type]  # a stand-in
    return offloads


@pytest.mark.parametrize(
    ("wanted", "devices"), [(Offload.OFF, ["eth9"]), (Offload.AUTO, [])], ids=["off", "no card"]
)
def test_nobody_is_asked(wanted: Offload, devices: list[str]) -> None:
    kernel = Kernel()
    install(kernel, wanted, devices)
    assert kernel.said == [("NEWSA", False)]


@pytest.mark.parametrize("wanted", [Offload.AUTO, Offload.CRYPTO])
def test_a_card_takes_it(wanted: Offload, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(device=1)
    with caplog.at_level(logging.INFO):
        install(kernel, wanted, times=3)
    assert kernel.said == [("NEWSA", True), ("GETSA", False)] * 3
    assert caplog.text.count("default/b/net (out): in hardware: lo") == 1, "a rekey is no news"


def test_what_a_card_took_is_known_until_the_sa_is_gone() -> None:
    spec = pair(0x1000, handling=Handling(offload=Offload.AUTO))[0]
    taken = {(spec.reqid, spec.id.direction): "lo"}
    offloads = install(Kernel(device=1), Offload.AUTO)
    assert offloads.taken() == taken
    offloads.forget(spec.id)
    assert offloads.taken() == {}
    offloads.inherit(spec.id, spec.reqid, {Attr.OFFLOAD_DEV: (1).to_bytes(4, "little") + bytes(4)})
    assert offloads.taken() == taken
    offloads.inherit(replace(spec.id, spi=2), 9, {})
    assert offloads.taken() == taken


def test_software_takes_what_a_card_refuses(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(refuses=True)
    with caplog.at_level(logging.INFO):
        offloads = install(kernel, Offload.AUTO, times=2)
    assert offloads.taken() == {}
    assert kernel.said == [("NEWSA", True), ("NEWSA", False)] * 2
    assert caplog.text.count("in software, because eth9 refused it") == 1


def test_a_way_without_a_card_is_software(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    with caplog.at_level(logging.INFO):
        install(kernel, Offload.AUTO)
    assert kernel.said == [("NEWSA", True), ("GETSA", False)]
    assert caplog.text == ""


def test_who_wants_a_card_gets_no_software() -> None:
    kernel = Kernel(refuses=True)
    with pytest.raises(DataplaneError, match=r"the device refuses it .*set hwOffload: Auto"):
        install(kernel, Offload.CRYPTO)
    assert kernel.said == [("NEWSA", True)]
    kernel = Kernel()
    with pytest.raises(DataplaneError, match=r"cannot compute ESP .*set hwOffload: Auto"):
        install(kernel, Offload.CRYPTO)
    assert kernel.said == [("NEWSA", True), ("GETSA", False), ("DELSA", False)]


def test_cards_are_looked_for_once_in_a_while() -> None:
    looks, now = [], [0.0]

    def devices() -> list[str]:
        looks.append(now[0])
        return []

    offloads = Offloads(devices, lambda: now[0])
    for moment in (0.0, 1.0, REFRESH - 0.1, REFRESH, REFRESH + 1):
        now[0] = moment
        offloads.install(Kernel(), pair(0x1000)[0], KEY, Treatment())  # type: ignore[arg-type]  # a stand-in
    assert looks == [0.0, REFRESH]


def test_features_of_a_device() -> None:
    assert "vlan-challenged" in ethtool.features("lo")
    assert ethtool.ESP not in ethtool.features("lo")
    assert ethtool.features("nobody0") == frozenset()
