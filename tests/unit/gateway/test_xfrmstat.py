"""/proc/net/xfrm_stat as metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipsec_gateway import xfrmstat
from ipsec_gateway.metrics import Metrics, Scrape

# As Linux 6.1 prints it.
TEXT = """\
XfrmInError             \t0
XfrmInBufferError       \t0
XfrmInHdrError          \t0
XfrmInNoStates          \t17
XfrmInStateProtoError   \t3
XfrmInStateModeError    \t0
XfrmOutNoStates         \t5
XfrmAcquireError        \t1
"""


def test_counters_by_name() -> None:
    found = xfrmstat.parse(TEXT)
    assert found["InNoStates"] == 17
    assert found["OutNoStates"] == 5
    assert len(found) == 8


@pytest.mark.parametrize("text", ["", "nonsense", "XfrmInError\n", "XfrmInError x\n", "In 5\n"])
def test_other_lines_are_passed_over(text: str) -> None:
    assert xfrmstat.parse(text) == {}


def test_a_kernel_without_statistics(tmp_path: Path) -> None:
    assert xfrmstat.read(tmp_path / "xfrm_stat") == {}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("InNoStates", "ipsec_xfrm_in_no_states"),
        ("InStateProtoError", "ipsec_xfrm_in_state_proto_error"),
        ("OutPolBlock", "ipsec_xfrm_out_pol_block"),
        ("FwdHdrError", "ipsec_xfrm_fwd_hdr_error"),
    ],
)
def test_names(name: str, metric: str) -> None:
    assert xfrmstat.metric(name) == metric


def test_the_names_of_routeros_are_all_there() -> None:
    names = [each.routeros for each in xfrmstat.MEANINGS.values() if each.routeros]
    assert len(set(names)) == len(names) == 25
    assert all(each.text.endswith(".") for each in xfrmstat.MEANINGS.values())
    assert len({xfrmstat.metric(name) for name in xfrmstat.MEANINGS}) == len(xfrmstat.MEANINGS)


def test_help_says_what_it_means() -> None:
    text = xfrmstat.help_text("InNoStates")
    assert "old SA" in text
    assert "XfrmInNoStates, in-no-states in RouterOS" in text
    assert xfrmstat.help_text("InSomethingNew") == "XfrmInSomethingNew of /proc/net/xfrm_stat."


def test_they_are_metrics() -> None:
    metrics = Metrics("n")
    metrics.scrape = Scrape("n", xfrm=xfrmstat.parse(TEXT) | {"InSomethingNew": 2})
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    (sample,) = families["ipsec_xfrm_in_no_states"].samples
    assert (sample.name, sample.labels, sample.value) == (
        "ipsec_xfrm_in_no_states_total",
        {"gateway": "n"},
        17,
    )
    assert "old SA" in families["ipsec_xfrm_in_no_states"].documentation
    assert families["ipsec_xfrm_in_something_new"].samples[0].value == 2
