"""Our messages are those of iproute2, octet by octet.

``iproute2.json`` has what Debian's ``ip xfrm`` (iproute2 6.1.0, x86-64) sends for each command,
seen with ``strace -e trace=sendmsg,sendto -e write=all``; ``body`` is without the netlink header.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ipsec_gateway.ipsec import xfrm_attributes as attr
from ipsec_gateway.ipsec import xfrm_messages as msg
from ipsec_gateway.ipsec.xfrm_attributes import Encapsulation, Limits, Replay, Template
from ipsec_gateway.ipsec.xfrm_messages import Message, Policy, Selector, State
from ipsec_gateway.ipsec.xfrm_numbers import (
    Attr,
    Dir,
    ExtraFlag,
    KernelMode,
    Msg,
    OffloadFlag,
    PolicyFlag,
    StateFlag,
    Verdict,
)

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="captured on x86-64")

VECTORS = json.loads((Path(__file__).parent / "iproute2.json").read_text())
V4, V6 = socket.AF_INET, socket.AF_INET6
UNSPEC = StateFlag.AF_UNSPEC


def key(octets: int) -> bytes:
    return bytes(range(octets))


def state(spi: int, **more: object) -> State:
    base = State(spi=spi, protocol=50, source="192.0.2.1", destination="192.0.2.2", reqid=7)
    return replace(base, **more)  # type: ignore[arg-type]  # fields of State


def nets(source: str, destination: str, **more: object) -> Selector:
    (src, slen), (dst, dlen) = source.split("/"), destination.split("/")
    base = Selector(
        family=V6 if ":" in src else V4,
        source=src,
        source_length=int(slen),
        destination=dst,
        destination_length=int(dlen),
    )
    return replace(base, **more)  # type: ignore[arg-type]  # fields of Selector


def template(**more: object) -> Template:
    base = Template(protocol=50, reqid=7, mode=KernelMode.TUNNEL, family=V4)
    return replace(base, **more)  # type: ignore[arg-type]  # fields of Template


OUTER = {"source": "192.0.2.1", "destination": "192.0.2.2"}
HOSTS = ("192.0.2.1/32", "192.0.2.2/32")
GCM = attr.aead_attribute("rfc4106(gcm(aes))", key(20), 128)
SIX = {"source": "2001:db8::1", "destination": "2001:db8::2"}

OURS: dict[str, Message] = {
    "spi 0x1001 mode": msg.put_state(state(0x1001, flags=UNSPEC), GCM),
    "spi 0x1002 mode": msg.put_state(
        state(0x1002, reqid=1073741831, window=32, flags=UNSPEC | StateFlag.ICMP),
        attr.integrity_attribute("hmac(sha256)", key(32), 128)
        + attr.encryption_attribute("cbc(aes)", key(16)),
    ),
    "spi 0x1003": msg.put_state(
        state(
            0x1003,
            mode=KernelMode.TRANSPORT,
            reqid=9,
            flags=StateFlag.ESN,
            selector=nets("2001:db8::1/128", "2001:db8::2/128"),
            **SIX,
        ),
        attr.integrity_attribute("hmac(sha384)", key(48), 192)
        + attr.encryption_attribute("rfc3686(ctr(aes))", key(20))
        + Replay(1024).attribute(),
    ),
    "spi 0x1004": msg.put_state(
        state(0x1004, protocol=51, mode=KernelMode.TRANSPORT, reqid=9),
        attr.integrity_attribute("hmac(sha512)", key(64), 256),
    ),
    "add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1005": msg.put_state(
        state(0x1005, flags=UNSPEC),
        attr.aead_attribute("rfc7539esp(chacha20,poly1305)", key(36), 128)
        + Encapsulation(4500, 40123).attribute()
        + attr.word_attribute(Attr.IF_ID, 0x17)
        + attr.set_mark_attributes(0x40, 0x70),
    ),
    "spi 0x1006": msg.put_state(
        state(
            0x1006,
            flags=UNSPEC | StateFlag.NOECN | StateFlag.DECAP_DSCP | StateFlag.NOPMTUDISC,
            limits=Limits(900000, 1000000, 900, 1000, 1600, 1800),
        ),
        attr.aead_attribute("rfc4309(ccm(aes))", key(19), 96)
        + attr.word_attribute(Attr.SA_EXTRA_FLAGS, ExtraFlag.DONT_ENCAP_DSCP),
    ),
    "spi 0x1007": msg.put_state(
        state(0x1007),
        attr.integrity_attribute("xcbc(aes)", key(16), 96)
        + attr.encryption_attribute("ecb(cipher_null)", b"")
        + attr.mark_attribute(0x10, 0x70),
    ),
    "spi 0x1008": msg.put_state(state(0x1008), GCM + attr.offload_attribute(1, 0)),
    "spi 0x1009": msg.put_state(
        state(0x1009), GCM + attr.offload_attribute(1, OffloadFlag.INBOUND)
    ),
    "spi 0x100a": msg.put_state(state(0x100A, **SIX), GCM + attr.offload_attribute(1, 0)),
    # Without a name of the device the kernel takes the one on the way.
    "spi 0x100b": msg.put_state(
        state(0x100B, flags=UNSPEC),
        GCM + attr.offload_attribute(0, 0) + attr.word_attribute(Attr.IF_ID, 0x20000017),
    ),
    "dst 0.0.0.0/0 dir fwd priority 9": msg.put_policy(
        Policy(
            selector=nets("0.0.0.0/0", "0.0.0.0/0"),
            direction=Dir.FORWARD,
            priority=9,
            templates=(template(),),
            if_id=0x20000017,
        ),
        update=False,
    ),
    "dst ::/0 dir out action block": msg.put_policy(
        Policy(
            selector=nets("::/0", "::/0"),
            direction=Dir.OUT,
            priority=9,
            verdict=Verdict.BLOCK,
            if_id=0x20000017,
        ),
        update=False,
    ),
    "policy delete src 0.0.0.0/0": msg.delete_policy(
        nets("0.0.0.0/0", "0.0.0.0/0"), Dir.FORWARD, if_id=0x20000017
    ),
    "state update": msg.put_state(
        state(0x1005), GCM + Encapsulation(4500, 40999).attribute(), update=True
    ),
    "state delete src 192": msg.delete_state(0x1001, 50, "192.0.2.2", "192.0.2.1"),
    "state delete src 2001": msg.delete_state(0x1002, 51, "2001:db8::2", "2001:db8::1"),
    "allocspi": msg.allocate_spi(state(0, limits=None), 0x1000, 0x2000),
    "index 0x40000009": msg.put_policy(
        Policy(
            selector=nets("10.1.0.0/16", "10.2.0.0/16"),
            direction=Dir.OUT,
            priority=1001,
            index=0x40000009,
            flags=PolicyFlag.ICMP,
            templates=(template(**OUTER),),
        ),
        update=False,
    ),
    "level use": msg.put_policy(
        Policy(
            selector=nets("10.2.0.0/16", "10.1.0.0/16"),
            direction=Dir.FORWARD,
            priority=1001,
            templates=(template(optional=True),),
        ),
        update=False,
    ),
    "policy update": msg.put_policy(
        Policy(
            selector=nets(
                "2001:db8:1::/64",
                "2001:db8:2::/64",
                protocol=6,
                source_port=80,
                source_mask=0xFFFF,
                destination_port=1024,
                destination_mask=0xFFFF,
            ),
            direction=Dir.IN,
            priority=5,
            templates=(template(source="192.0.2.2", destination="192.0.2.1"),),
        ),
        update=True,
    ),
    "proto icmp": msg.put_policy(
        Policy(
            selector=nets(
                *HOSTS,
                protocol=1,
                source_port=8,
                source_mask=0xFFFF,
                destination_mask=0xFFFF,
            ),
            direction=Dir.OUT,
            priority=6,
            verdict=Verdict.BLOCK,
        ),
        update=False,
    ),
    "action allow": msg.put_policy(
        Policy(selector=nets(*HOSTS), direction=Dir.OUT, priority=7), update=False
    ),
    "proto gre": msg.put_policy(
        Policy(
            selector=nets(*HOSTS, protocol=47),
            direction=Dir.OUT,
            priority=8,
            templates=(
                template(reqid=3, mode=KernelMode.TRANSPORT),
                template(reqid=3, mode=KernelMode.TRANSPORT, protocol=51),
            ),
        ),
        update=False,
    ),
    "priority 1001 mark": msg.put_policy(
        Policy(
            selector=nets("10.1.0.0/16", "10.2.0.0/16"),
            direction=Dir.OUT,
            priority=1001,
            templates=(template(**OUTER),),
        ),
        attr.mark_attribute(0x10, 0x70) + attr.word_attribute(Attr.IF_ID, 0x17),
        update=False,
    ),
    "policy delete src 10.1": msg.delete_policy(nets("10.1.0.0/16", "10.2.0.0/16"), Dir.OUT),
    "hthresh4": msg.set_thresholds((24, 24), (48, 56)),
    "policy list": msg.dump_policies(),
}


@pytest.mark.parametrize("words", [w for w, m in OURS.items() if m.kind == Msg.NEWPOLICY])
def test_a_policy_is_read_as_it_was_written(words: str) -> None:
    policy = Policy.decode(memoryview(OURS[words].body))
    again = msg.put_policy(policy, update=False).body
    assert OURS[words].body.startswith(again[:168])
    assert bool(policy.if_id) is ("if_id" in _vector(words)["command"])
    if Attr.MARK not in dict(attr.attributes(memoryview(OURS[words].body)[168:])):
        assert again == OURS[words].body


def _vector(words: str) -> dict[str, Any]:
    (vector,) = [v for v in VECTORS if words in v["command"]]
    return cast(dict[str, Any], vector)


@pytest.mark.parametrize("words", OURS)
def test_a_message_is_what_iproute2_sends(words: str) -> None:
    vector, ours = _vector(words), OURS[words]
    assert (ours.kind, ours.flags) == (vector["type"], vector["flags"])
    assert ours.body.hex() == vector["body"]


def test_every_command_that_writes_has_our_message() -> None:
    written = [v["command"] for v in VECTORS if not v["command"].endswith("list")]
    matched = {v["command"] for v in VECTORS for words in OURS if words in v["command"]}
    assert [c for c in written if c not in matched and "policy get" not in c] == []


def test_a_dump_leaves_the_kernel_nothing_to_complain_of() -> None:
    """What follows the message's header must be whole attributes (iproute2: an empty filter)."""
    body = memoryview(msg.dump_states().body)
    assert sum(4 + len(value) for _, value in attr.attributes(body)) == len(body)
