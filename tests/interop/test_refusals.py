"""What both sides refuse, and that our status says why."""

import pytest

from ipsec_lab.interop import CHILD, CONNECTION, PEER, InteropRig
from ipsec_lab.netns import LabError

ROLES = pytest.mark.parametrize("role", ["initiator", "responder"])


def refuse(rig: InteropRig, role: str, documents, connection) -> None:
    """Start both; the tunnel must not come up."""
    rig.start_theirs(connection)
    rig.start_ours(documents)
    if role == "responder":
        with pytest.raises(LabError):
            rig.charon.initiate(child=CHILD, timeout=5)


@ROLES
def test_wrong_psk(rig: InteropRig, role):
    documents = rig.documents(psk=b"not the same secret", passive=role == "responder")
    refuse(rig, role, documents, rig.connection())
    condition = rig.gateway.wait_condition(PEER, "Established", "False", reason="AuthFailed")
    assert rig.topology.b.wan_address() in condition["message"]
    assert rig.charon.established(CONNECTION) == []
    assert "not the same secret" not in rig.gateway.log()


@ROLES
def test_no_common_ike_proposal(rig: InteropRig, role):
    documents = rig.documents(passive=role == "responder")
    refuse(rig, role, documents, rig.connection(proposals=("aes256-sha384-modp4096",)))
    condition = rig.gateway.wait_condition(PEER, "Established", "False", reason="NoProposalChosen")
    assert "AES_GCM_16_128" in condition["message"]
    if role == "responder":
        assert "AES_CBC_256" in condition["message"]


@ROLES
def test_no_common_esp_proposal(rig: InteropRig, role):
    documents = rig.documents(passive=role == "responder")
    refuse(rig, role, documents, rig.connection(child={"esp_proposals": ("aes256-sha384",)}))
    condition = rig.gateway.wait_condition(PEER, "Ready", "False", reason="NoProposalChosen")
    assert "AES_GCM_16_128" in condition["message"]


@ROLES
def test_no_common_selectors(rig: InteropRig, role):
    documents = rig.documents(
        selectors=[("10.1.0.0/24", "10.2.0.0/24")], passive=role == "responder"
    )
    child = {"local_ts": ("10.2.1.0/24",), "remote_ts": ("10.1.0.0/24",)}
    refuse(rig, role, documents, rig.connection(child=child))
    condition = rig.gateway.wait_condition(PEER, "Ready", "False", reason="TSUnacceptable")
    assert "10.2.0.0/24" in condition["message"]


def test_the_right_secret_heals(rig: InteropRig):
    """A wrong secret is corrected in the folder: the tunnel comes up without a restart."""
    connection = rig.connection()
    refuse(rig, "initiator", rig.documents(psk=b"wrong"), connection)
    rig.gateway.wait_condition(PEER, "Established", "False", reason="AuthFailed")
    rig.gateway.apply(*rig.documents())
    rig.wait_up(connection)
    rig.exchange_traffic(lan=(0,))
