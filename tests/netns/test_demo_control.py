"""The demo's negative control, with a guard that does not guard."""

import pytest

from ipsec_lab import demo
from ipsec_lab.guard import Guard
from ipsec_lab.netns import LabError
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping_until


def test_the_control_passes_behind_the_guard_and_fails_without_it():
    with Topology() as topology:
        guard = Guard(topology)
        demo._clear_text_must_be_dropped(topology, guard)
        topology.wan.nft("insert rule inet lab_guard forward accept")
        ping_until(topology.lan_a, topology.b.host())
        with pytest.raises(LabError, match="passes without a tunnel"):
            demo._clear_text_must_be_dropped(topology, guard)


def test_the_control_fails_where_the_guard_sees_nothing():
    """Traffic that vanishes for another reason proves nothing about the guard."""
    with Topology() as topology:
        guard = Guard(topology)
        guard.cut()
        with pytest.raises(LabError, match="dropped 0 of 4"):
            demo._clear_text_must_be_dropped(topology, guard)
