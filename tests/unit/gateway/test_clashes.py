"""Other people's rules, routes and flowtables, as iproute2 and nft show them."""

from __future__ import annotations

import pytest

from ipsec_gateway import clashes
from ipsec_gateway.nftscripts import explained

CALICO = {"priority": 99, "fwmark": "0x10", "fwmask": "0xf0", "table": "7", "protocol": "80"}


def test_a_rule_on_our_bits_is_named() -> None:
    (text,) = clashes.of_rules([CALICO])
    assert "priority 99 of protocol 80 (Calico)" in text
    assert "0x70 of that" in text


@pytest.mark.parametrize(
    "rule",
    [
        {**CALICO, "protocol": "79"},
        {"priority": 32766, "table": "254", "protocol": "2"},
        # One value of the whole word, and bits that are others' own.
        {"priority": 9, "fwmark": "0x10", "table": "7"},
        {"priority": 9, "fwmark": "0x4000", "fwmask": "0x4000"},
        # "None of ours" is no claim to them.
        {"priority": 9, "fwmark": "0", "fwmask": "0x70"},
    ],
)
def test_what_is_no_clash(rule: dict[str, object]) -> None:
    assert clashes.of_rules([rule]) == []


def test_a_route_in_our_table_is_named() -> None:
    shown = [
        {"dst": "10.2.0.0/16", "dev": "kipsec0", "protocol": "79"},
        {"dst": "10.9.0.0/16", "dev": "eth0", "protocol": "186"},
        {"dst": "10.8.0.0/16", "dev": "eth0", "protocol": "99"},
    ]
    bgp, unknown = clashes.of_routes(shown, 4500)
    assert "10.9.0.0/16 in table 4500 is of protocol 186 (FRR (BGP))" in bgp
    assert "protocol 99," in unknown


def test_flowtables() -> None:
    shown = {
        "nftables": [
            {"metainfo": {}},
            {"flowtable": {"family": "inet", "table": "fw4", "name": "ft"}},
        ]
    }
    (text,) = clashes.of_flowtables(shown)
    assert "inet fw4 ft" in text
    assert clashes.of_flowtables({}) == []


def test_what_the_kernel_lacks() -> None:
    refusal = (
        "nft -f -: /dev/stdin:5:1-9: Error: Could not process rule: No such file or directory\n"
        "    fib daddr type local udp dport { 500, 4500 } return\n"
        "    ^^^^^^^^^^^^^^^^^^^^"
    )
    text = explained(refusal)
    assert "nothing was changed" in text
    assert text.endswith("the kernel may lack nft_fib_inet: try modprobe on the node")
    assert "No such file or directory" in text
    assert explained("nft is not installed; install the package nftables").startswith("nft is not")
