"""What the engine is told to do: peers, identities, children, timers. Plain frozen data.

Durations are seconds (float), sizes are octets. Nothing here knows Kubernetes; the gateway derives
these from the resources.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

from ipsec_ike.identity import Identity
from ipsec_ike.proposal import Proposal
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector


class Mode(Enum):
    """How ESP and AH treat the packet (RFC 4301 3.2)."""

    TUNNEL = "tunnel"
    TRANSPORT = "transport"


class Start(Enum):
    """When a child SA is negotiated."""

    #: At once, and again whenever it is lost.
    NOW = "now"
    #: On the first packet that matches (``Engine.acquire``).
    ON_TRAFFIC = "on-traffic"
    #: Only when the peer asks.
    NEVER = "never"


class Childless(Enum):
    """RFC 6023 as initiator. A responder always supports it."""

    #: The first child is negotiated in IKE_AUTH, as RFC 7296 has it.
    NEVER = "never"
    #: Childless where the peer announces it: every child then has its own Diffie-Hellman.
    PREFER = "prefer"


class Offload(Enum):
    """What of an SA a network card does, if it can."""

    OFF = "off"
    #: Cryptography, where the card and its driver take the SA, else nothing.
    AUTO = "auto"
    #: Cryptography, or there is no SA.
    CRYPTO = "crypto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """What the data plane does with a packet beyond protecting it. The engine only passes it on.

    ``interface`` is the number of the interface whose traffic this is, 0 for traffic that is found
    by its addresses alone. The rest is about the outer header in tunnel mode: DSCP copied to it
    (RFC 2983), and back from it; ECN (RFC 6040 normal mode, else the outer header has none); the DF
    bit of IPv4 as the inner packet has it, else never set.
    """

    interface: int = 0
    copy_dscp: bool = True
    keep_outer_dscp: bool = False
    ecn: bool = True
    copy_df: bool = True
    offload: Offload = Offload.AUTO
    #: The whole mark of outer packets; 0 is the data plane's own.
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """When an SA ends. 0 means no limit of that kind.

    Hard limits; the soft limit, where a rekey starts, is ``margin`` (a fraction of the hard limit)
    earlier, and earlier still by a random part of ``jitter`` (a fraction too), so that many tunnels
    do not rekey together. 0 <= margin, jitter and margin + jitter < 1.
    """

    seconds: float = 0
    bytes: int = 0
    packets: int = 0
    margin: float = 0.1
    jitter: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Retransmission:
    """Exponential back-off: the n-th repeat is ``base * factor**n`` seconds after the one before.

    After ``tries`` repeats without an answer the peer is taken as dead. ``limit`` caps one wait.
    The defaults give up after about 30 seconds; RFC 7296 2.1 leaves the numbers to us.
    """

    base: float = 0.5
    factor: float = 1.8
    limit: float = 15.0
    tries: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildConfig:
    """One CHILD_SA to negotiate: the union of selectors of one policy entry.

    ``reqid`` (1-2**31) ties the SAs to the policies of the data plane and stays the same over
    rekeys. ``proposals`` are ESP or AH proposals in order of preference; KE transforms in them are
    the PFS groups, which the engine leaves out of IKE_AUTH (RFC 7296 1.2).
    """

    name: str
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    proposals: tuple[Proposal, ...]
    reqid: int
    mode: Mode = Mode.TUNNEL
    lifetime: Lifetime = field(default_factory=lambda: Lifetime(seconds=1800))
    start: Start = Start.NOW
    replay_window: int = 1024
    handling: Handling = field(default_factory=Handling)
    #: The template that the engine made this child from; empty for a configured one.
    template: str = ""
    #: (local, remote) of what the SAs carry, where that is not what was agreed on.
    installed: tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]] | None = None


#: Between the template and the rest in the name of a generated child.
GENERATED: Final = "#"


def template_of(child: str) -> str:
    """The template that the name of a generated child begins with; other names stay."""
    return child.partition(GENERATED)[0]


class Taken(NamedTuple):
    """Traffic that a template must not give away, and whose it is, in words.

    ``first``: it is looked at before what the template gives, so that nothing within it would ever
    match; otherwise only the very same pair is refused.
    """

    local: TrafficSelector
    remote: TrafficSelector
    owner: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateConfig:
    """A pattern for children that a peer asks for, as responder only.

    What it asks for is narrowed to ``local_ts`` and ``remote_ts`` and becomes a child of its own,
    with a reqid between the two of ``reqids``. A remote default route is given only with
    ``default_route``.
    """

    name: str
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    proposals: tuple[Proposal, ...]
    reqids: tuple[int, int]
    mode: Mode = Mode.TUNNEL
    lifetime: Lifetime = field(default_factory=lambda: Lifetime(seconds=1800))
    replay_window: int = 1024
    handling: Handling = field(default_factory=Handling)
    default_route: bool = False
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityConfig:
    """Who we are and who may answer. A responder tries them by the received IDi (and IDr).

    ``local_id`` None means the address of the IKE SA (RFC 7296 2.15 with ID_IPV*_ADDR).
    ``remote_id`` None accepts any identity that proves itself with these credentials ("ignore").
    ``psk`` is the shared key; ``psk_previous`` is also accepted from the peer during a rotation.
    ``children`` names the children that this identity may use; empty means all of the peer's.
    ``templates`` names the templates that it may ask for children from, and ``any_port`` says that
    those carry all ports that their template has, whatever ports were asked for.
    """

    name: str
    local_id: Identity | None = None
    remote_id: Identity | None = None
    psk: Secret | None = None
    psk_previous: Secret | None = None
    children: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    any_port: bool = False


class Path(NamedTuple):
    """Two IP addresses as text: where an initiation is sent from (the shell asked the routing
    table, NAT detection needs it) and where to."""

    local: str
    remote: str


class Responder(NamedTuple):
    """Where a gateway answers probes: the UDP port of its responder, 0 if it has none, and up to
    eight of its addresses as text, which answer pings as well."""

    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """One remote IKE endpoint.

    ``paths`` are the candidates for initiation in order, addresses already resolved by the shell;
    empty for a responder-only peer or while there is no route. ``remote_networks`` are the source
    addresses from which the peer may come; the longest matching prefix wins among peers.
    ``local_address``, where given, is the only address of ours at which the peer may arrive.
    """

    name: str
    identities: tuple[IdentityConfig, ...]
    children: tuple[ChildConfig, ...]
    ike_proposals: tuple[Proposal, ...]
    templates: tuple[TemplateConfig, ...] = ()
    paths: tuple[Path, ...] = ()
    remote_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    remote_port: int = 500
    local_address: str | None = None
    #: False: never initiate.
    initiate: bool = True
    #: IKE SA: rekeyed at the soft limit; deleted at the hard one.
    ike_lifetime: Lifetime = field(default_factory=lambda: Lifetime(seconds=28800))
    retransmission: Retransmission = field(default_factory=Retransmission)
    #: Seconds of silence after which liveness is checked; 0 disables (RFC 7296 2.4).
    dpd_interval: float = 8.0
    #: Seconds between NAT keepalives when we are behind a NAT (RFC 3948 2.3); 0 disables.
    keepalive_interval: float = 20.0
    #: Pretend a NAT, so that ESP is always UDP encapsulated.
    force_encapsulation: bool = False
    #: RFC 7383; fragments are offered and used for messages above ``fragment_size``.
    fragmentation: bool = True
    #: Largest IP packet, in octets, that an IKE message may need before it is fragmented.
    fragment_size: int = 1280
    childless: Childless = Childless.NEVER
    send_initial_contact: bool = True
    #: What the peer is told of us when an IKE SA is made, if it is a gateway of our kind.
    responder: Responder | None = None
    #: Seconds after which a failed peer is tried again, doubled each time up to ``retry_limit``.
    retry_interval: float = 2.0
    retry_limit: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What strangers may cost us. All counts are per engine unless they say otherwise."""

    #: Above this many half-open IKE SAs every IKE_SA_INIT must return a COOKIE (RFC 7296 2.6).
    cookie_threshold: int = 32
    #: No new half-open SA from one address above this many; from half of it on, COOKIE.
    half_open_per_address: int = 8
    #: No new half-open SA at all above this many.
    half_open_max: int = 1024
    #: Seconds a half-open SA may last.
    half_open_timeout: float = 30.0
    #: Octets of one IKE message, before and after reassembly.
    message_size: int = 65535
    #: Payloads in one message.
    payloads: int = 64
    #: Fragments of one message.
    fragments: int = 64
    #: IKE SAs of one remote identity, those included that only wait to be forgotten; at least 4.
    ike_sas_per_identity: int = 16
    #: CHILD_SAs of one IKE SA.
    children: int = 256
    #: Pairs of prefixes and ports that one remote identity may have from templates.
    generated: int = 1024
    #: Seconds for which a COOKIE secret signs new cookies; it verifies twice as long.
    cookie_lifetime: float = 30.0
