"""SA directions (XFRMA_SA_DIR, Linux 6.10): a kernel that checks them finds nothing wrong.

It checks before it looks for the cipher, so a kernel without ESP can judge, too.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from ipsec_gateway.ipsec.xfrm_messages import Message
from ipsec_gateway.ipsec.xfrm_netlink import XfrmSocket
from ipsec_gateway.ipsec.xfrm_numbers import StateFlag
from ipsec_gateway.ipsec.xfrm_sa import Treatment, add_state, repeat_state
from ipsec_gateway.probe import probe
from ipsec_ike.config import Handling, Mode
from ipsec_lab.netns import Namespace
from ipsec_lab.xfrm_rig import CBC, OUTER6, inside, pair

HOW = Treatment(directions=True)
ODD = Handling(
    copy_dscp=False, keep_outer_dscp=True, ecn=False, copy_df=False, interface=0x20000001
)
#: The flags of an SA are the last of its fixed part.
_FLAGS = 216
SHAPES: list[dict[str, Any]] = [
    {},
    {"esn": True, "replay_window": 1024},
    {"replay_window": 1024},
    {"replay_window": 0},
    {"ports": (4500, 4500)},
    {"ends": OUTER6, "handling": ODD},
    {"mode": Mode.TRANSPORT, "suite": CBC},
    {"handling": ODD, "esn": True},
]


@pytest.fixture(scope="module")
def kernel() -> Iterator[XfrmSocket]:
    namespace = Namespace("dirs")
    try:
        with inside(namespace):
            if not probe().directions:
                pytest.skip("this kernel knows no SA directions (Linux 6.10)")
            socket = XfrmSocket()
        yield socket
        socket.close()
    finally:
        namespace.delete()


def verdict(kernel: XfrmSocket, message: Message) -> int:
    (error,) = kernel.execute([message])
    return 0 if error is None else error.number


#: What a kernel says that has nothing against the message but lacks the rest.
FINE = (0, errno.ENOSYS, errno.EPROTONOSUPPORT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("end", [0, 1], ids=["out", "in"])
def test_nothing_is_wrong_with_ours(kernel: XfrmSocket, shape: dict[str, Any], end: int) -> None:
    spec = pair(0x5000, **shape)[end]
    assert verdict(kernel, add_state(spec, HOW)) in FINE


@pytest.mark.parametrize("end", [0, 1], ids=["out", "in"])
def test_nor_with_one_that_has_moved(kernel: XfrmSocket, end: int) -> None:
    spec = pair(0x5000, replay_window=32)[end]
    body = memoryview(add_state(spec, HOW).body)
    assert verdict(kernel, repeat_state(body, "192.0.2.1", "192.0.2.9", None)) in FINE


@pytest.mark.parametrize(
    ("end", "flag"), [(0, StateFlag.DECAP_DSCP), (1, StateFlag.NOPMTUDISC)], ids=["out", "in"]
)
def test_it_would_have_been_told(kernel: XfrmSocket, end: int, flag: int) -> None:
    message = add_state(pair(0x5000)[end], HOW)
    body = bytearray(message.body)
    body[_FLAGS] |= flag
    assert verdict(kernel, Message(message.kind, bytes(body))) == errno.EINVAL
