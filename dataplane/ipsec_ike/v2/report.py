"""The read-only view of the SAs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipsec_ike.sa.child_sa import ChildSa
from ipsec_ike.sa.info import ChildSaInfo, IkeSaInfo
from ipsec_ike.v2.states import State

if TYPE_CHECKING:
    from ipsec_ike.v2.host import Host
    from ipsec_ike.v2.ike_sa import IkeSa


def snapshot(host: Host) -> list[IkeSaInfo]:
    """Every IKE SA, also those under way and those that are being deleted."""
    return [_ike(sa) for sa in host.sas.values() if not _over(sa)]


def _over(sa: IkeSa) -> bool:
    """The peer has deleted it, and nothing of it is in the data plane."""
    return sa.state is State.DELETING and not sa.window.busy and not sa.children


def _ike(sa: IkeSa) -> IkeSaInfo:
    return IkeSaInfo(
        peer=sa.peer.config.name,
        spi_i=sa.spi_i,
        spi_r=sa.spi_r,
        initiator=sa.initiator,
        state=sa.state.value,
        local=sa.local,
        remote=sa.remote,
        local_id="" if sa.local_id is None else str(sa.local_id),
        remote_id="" if sa.remote_id is None else str(sa.remote_id),
        suite="" if sa.suite is None else sa.suite.name,
        nat_local=sa.nat_local,
        nat_remote=sa.nat_remote,
        established_at=sa.established_at,
        rekey_at=sa.soft_at,
        expires_at=sa.hard_at,
        children=tuple(_child(sa, child) for child in sa.children),
    )


def _child(sa: IkeSa, child: ChildSa) -> ChildSaInfo:
    local_ts, remote_ts = child.carries
    return ChildSaInfo(
        name=child.config.name,
        reqid=child.config.reqid,
        spi_in=child.spi_in,
        spi_out=child.spi_out,
        state=child.state.value,
        outbound=child.outbound,
        suite=child.suite.name,
        mode=child.mode.value,
        encap=sa.encap,
        local_ts=local_ts,
        remote_ts=remote_ts,
        created_at=child.created_at,
        rekey_at=child.soft_at,
        expires_at=child.hard_at,
        template=child.config.template,
    )
