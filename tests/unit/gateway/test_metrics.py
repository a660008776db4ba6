"""Names, labels and counters that never go back."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ipsec_api.tunnel import ObjectRef
from ipsec_gateway.board import PeerState, fold
from ipsec_gateway.intent import ChildOwner
from ipsec_gateway.metrics import Metrics, Scrape
from ipsec_gateway.pump import Traffic
from ipsec_gateway.steering import Counted
from ipsec_ike import events
from ipsec_ike.events import Reason
from ipsec_ike.inputs import Endpoint

NAME = "default/hq"
HERE = Endpoint("192.0.2.1", 500)


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values in order of their names) and value of each sample."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def up(state: PeerState) -> None:
    event = events.IkeSaUp(
        peer=NAME,
        local=HERE,
        remote=HERE,
        initiator=True,
        spi_i=b"",
        spi_r=b"",
        suite="",
        local_id="",
        remote_id="",
        nat_local=False,
        nat_remote=False,
    )
    fold(state, event, "2026-01-01T00:00:00Z")


def test_peers_and_children() -> None:
    metrics = Metrics("node1")
    state = PeerState()
    up(state)
    ref = ObjectRef(kind="IPsecPolicy", namespace="default", name="lans")
    metrics.scrape = Scrape(
        "node1",
        peers={NAME: state},
        configured=frozenset({NAME, "default/other"}),
        children={(NAME, "lans.000"): ChildOwner(ref, 1), (NAME, "lans.001"): ChildOwner(ref, 1)},
        traffic={
            (NAME, "lans.000"): Traffic(rx_bytes=5, tx_packets=1),
            (NAME, "lans.001"): Traffic(rx_bytes=7),
        },
        guard={"unencrypted_out": Counted(3, 300), "discarded_in": Counted(2, 200)},
        dataplane_drops={"replay": 4},
    )
    found = read(metrics)
    assert found["ipsec_peer_up", "node1", "default", "hq"] == 1
    assert found["ipsec_peer_up", "node1", "default", "other"] == 0
    when = found["ipsec_ike_sa_established_timestamp_seconds", "node1", "default", "hq"]
    assert when == 1767225600
    assert found["ipsec_child_sa_rx_bytes_total", "node1", "default", "hq", "lans"] == 12
    assert found["ipsec_child_sa_tx_packets_total", "node1", "default", "hq", "lans"] == 1
    assert found["ipsec_unencrypted_drops_total", "out", "node1"] == 3
    assert found["ipsec_policy_discards_total", "in", "node1"] == 2
    assert found["ipsec_dataplane_drops_total", "node1", "replay"] == 4


def test_events_are_counted_by_reason() -> None:
    metrics = Metrics("n")
    for reason in (Reason.TIMEOUT, Reason.TIMEOUT, Reason.REPLACED, Reason.AUTH_FAILED):
        metrics.event(
            events.IkeSaDown(peer=NAME, reason=reason, message="", remote=HERE, established=False)
        )
    metrics.event(
        events.ChildSaRekeyed(
            peer=NAME, child="c", reqid=1, old_spi_in=1, spi_in=2, spi_out=3, suite=""
        )
    )
    metrics.event(events.IkeSaRekeyed(peer=NAME, suite="", spi_i=b"", spi_r=b""))
    metrics.restarted()
    metrics.reconciled(0.5, ok=True)
    metrics.reconciled(0.5, ok=False)
    found = read(metrics)
    assert found["ipsec_ike_failures_total", "n", "default", "hq", "Timeout"] == 2
    assert found["ipsec_ike_failures_total", "n", "default", "hq", "AuthFailed"] == 1
    assert not any("Replaced" in key for key in found)
    assert found["ipsec_rekeys_total", "n", "child", "default", "hq", "ok"] == 1
    assert found["ipsec_rekeys_total", "n", "ike", "default", "hq", "ok"] == 1
    assert found["ipsec_dataplane_restarts_total", "n"] == 1
    assert found["ipsec_reconcile_total", "n", "failed"] == 1
    assert found["ipsec_reconcile_duration_seconds_total", "n"] == 1
