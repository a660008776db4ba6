"""What happened, with the cause. For status, logs and metrics; nothing here holds a key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ipsec_ike.config import Responder
from ipsec_ike.inputs import Endpoint
from ipsec_ike.selectors import TrafficSelector


class Reason(Enum):
    """Why an SA could not be set up or went away. The values are the reasons of conditions."""

    AUTH_FAILED = "AuthFailed"
    NO_PROPOSAL_CHOSEN = "NoProposalChosen"
    TS_UNACCEPTABLE = "TSUnacceptable"
    TIMEOUT = "Timeout"
    PEER_DEAD = "PeerDead"
    PEER_DELETED = "PeerDeleted"
    REPLACED = "Replaced"
    REKEYED = "Rekeyed"
    EXPIRED = "Expired"
    CONFIGURATION = "ConfigurationChanged"
    TERMINATED = "Terminated"
    INVALID_MESSAGE = "InvalidMessage"
    PEER_ERROR = "PeerError"
    DATAPLANE = "DataplaneError"
    UNKNOWN_PEER = "UnknownPeer"
    REAUTHENTICATION = "Reauthentication"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base: ``peer`` is PeerConfig.name, empty while the peer is not known."""

    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaConnecting(Event):
    """An attempt to set up the IKE SA starts."""

    remote: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaUp(Event):
    """Authenticated. ``suite`` reads like ``AES_GCM_16_256/HMAC_SHA2_256/CURVE25519``.

    ``responder`` is what a peer of our kind says of itself. It says what it likes: of the addresses
    only those that its selectors allow mean anything."""

    local: Endpoint
    remote: Endpoint
    initiator: bool
    spi_i: bytes
    spi_r: bytes
    suite: str
    local_id: str
    remote_id: str
    nat_local: bool
    nat_remote: bool
    responder: Responder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaResumed(IkeSaUp):
    """An IKE SA of an earlier life of the gateway goes on. ``age`` is in seconds."""

    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaRekeyed(Event):
    """The IKE SA has new keys and SPIs; its children moved with it."""

    suite: str
    spi_i: bytes
    spi_r: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaDown(Event):
    """The IKE SA is gone, or was never set up (``established`` False).

    ``message`` names cause, address and port or attribute, and where there is one the remedy.
    """

    reason: Reason
    message: str
    remote: Endpoint
    established: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaUp(Event):
    """A CHILD_SA is installed in both directions. ``template`` is what it was made from, if any."""

    child: str
    reqid: int
    spi_in: int
    spi_out: int
    suite: str
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    encap: bool
    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaResumed(ChildSaUp):
    """A CHILD_SA of an earlier life of the gateway goes on, with the SAs that were installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaRekeyed(Event):
    """A CHILD_SA was replaced make-before-break."""

    child: str
    reqid: int
    old_spi_in: int
    spi_in: int
    spi_out: int
    suite: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaDown(Event):
    """A CHILD_SA is gone without a successor, or could not be set up (``spi_in`` 0)."""

    child: str
    reqid: int
    spi_in: int
    reason: Reason
    message: str
    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalMismatch(Event):
    """No common proposal. ``differences`` has one readable line per attribute that cannot match,
    such as ``ENCR: ours AES_GCM_16_256, theirs DES3``. Empty ``theirs`` where the peer refused and
    did not say what it wants."""

    stage: str  # "IKE" or the child's name
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorsNarrowed(Event):
    """The peer agreed to less than we asked for."""

    child: str
    wanted: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]
    agreed: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorsMismatch(Event):
    """No common selectors; ``theirs`` is empty where the peer refused and did not say."""

    child: str
    ours: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]
    theirs: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorsRefused(Event):
    """What a peer asked for lies within a template, and is not given to it all the same.

    ``message`` says why, and names who has the traffic if it is somebody else's.
    """

    template: str
    remote_id: str
    wanted: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthFailed(Event):
    """``remote_id`` is what the peer claimed, as text; ``ours``: the peer refused us."""

    remote: Endpoint
    remote_id: str
    ours: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMoved(Event):
    """The peer's address or port changed (NAT rebinding); SAs follow in place."""

    old: Endpoint
    new: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something that an operator of the network should know but that ends nothing."""

    message: str
