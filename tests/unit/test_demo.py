"""The demo's verdict: it must fail whenever the traffic was not seen to pass encrypted."""

import pytest
from click.testing import CliRunner

from ipsec_lab import demo, demo_sites, userns
from ipsec_lab.guard import GuardCounters
from ipsec_lab.netns import LabError
from ipsec_lab.sniffer import Sighting

GOOD = GuardCounters(ike=4, esp_udp=100)
SEEN = Sighting({"ike": 4, "esp-in-udp": 100}, 0, 0)


def test_encrypted_traffic_and_nothing_else_passes():
    demo._judge(GOOD, SEEN)


@pytest.mark.parametrize(
    ("guard", "sniffer", "complaint"),
    [
        (GuardCounters(ike=4, esp_udp=100, clear=1), SEEN, "1 clear-text packets"),
        (
            GOOD,
            Sighting({"esp-in-udp": 100}, 1, 0, "icmp frame"),
            "readable on the WAN: icmp frame",
        ),
        (GuardCounters(ike=4), SEEN, "no ESP"),
        (GOOD, Sighting({"ike": 4}, 0, 0), "no ESP"),
    ],
)
def test_anything_else_fails(guard, sniffer, complaint):
    with pytest.raises(LabError, match=complaint):
        demo._judge(guard, sniffer)


def test_strongswan_is_told_what_the_example_says():
    connection = demo_sites.connection_of(demo_sites.documents(demo.EXAMPLES / "west"))
    assert connection.remote_addrs == ("192.0.2.1",)
    assert len(connection.psk) == 32
    assert "psk" not in repr(connection)
    (child,) = connection.children
    assert child.local_ts == ("10.2.0.0/24", "fd00:2::/64")
    assert child.remote_ts == ("10.1.0.0/24", "fd00:1::/64")


def test_a_folder_without_a_peer_is_named(tmp_path):
    with pytest.raises(LabError, match=f"no IPsecPeer in {tmp_path}"):
        demo_sites.documents(tmp_path)


def test_an_example_without_its_secret_is_refused():
    found = demo_sites.documents(demo.EXAMPLES / "west")
    with pytest.raises(LabError, match="no Secret east-psk with the key psk"):
        demo_sites.connection_of([d for d in found if d["kind"] != "Secret"])


def test_what_the_machine_lacks_is_one_line_and_an_exit_code(monkeypatch):
    monkeypatch.setattr(demo, "missing_programs", lambda *names: ["nft"])
    result = CliRunner().invoke(demo.demo, [])
    assert result.exit_code == 1
    assert "missing: nft" in result.output
    assert result.output.strip().count("\n") == 0


def test_without_rights_and_user_namespaces_the_demo_says_so(monkeypatch):
    monkeypatch.setattr(demo, "missing_programs", lambda *names: [])
    monkeypatch.setattr(demo.os, "access", lambda *args: True)
    monkeypatch.setattr(userns, "has_network_rights", lambda: False)
    monkeypatch.setattr(userns, "missing_programs", lambda *names: ["unshare"])
    result = CliRunner().invoke(demo.demo, [])
    assert result.exit_code == 1
    assert "needs root" in result.output
