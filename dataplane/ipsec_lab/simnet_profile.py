"""What one seed means: the network, the two configurations, and how rough the run is.

Everything is drawn from the seed alone. A profile is *gentle* if nothing is ever lost for long and
nobody ends anything on purpose: then traffic must never be without an SA. Any other profile may
break SAs, but must always find back to one state at both ends.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from ipsec_ike.config import (
    ChildConfig,
    Childless,
    IdentityConfig,
    Lifetime,
    Limits,
    Path,
    PeerConfig,
    Retransmission,
    Start,
    TemplateConfig,
)
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import Encr, Esn, Group, Prf, Protocol, TransformType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab.simnet_network import Weather, seeded

LEFT: Final = "left"
RIGHT: Final = "right"

INSIDE: Final = "192.168.1.2"
PUBLIC: Final = ("203.0.113.1", "203.0.113.2")

_PSK: Final = Secret(b"a shared secret of the simulated sites")
_AES_GCM: Final = Transform(TransformType.ENCR, Encr.AES_GCM_16, 128)
_PRF: Final = Transform(TransformType.PRF, Prf.HMAC_SHA2_256)
_X25519: Final = Transform(TransformType.KE, Group.CURVE25519)
_ECP_256: Final = Transform(TransformType.KE, Group.ECP_256)
_NO_ESN: Final = Transform(TransformType.ESN, Esn.NO_ESN)
_ESN: Final = Transform(TransformType.ESN, Esn.ESN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One run. Times in virtual seconds, probabilities 0-1."""

    seed: int
    weather: Weather
    rough: bool  # restarts, terminations, partitions, clock jumps, changed configuration
    nat: bool
    nat_timeout: float
    ipv6: bool
    both_initiate: bool
    children: int
    pfs: bool
    esn: bool
    on_traffic: bool
    childless: bool
    other_group_first: bool
    cookies: bool
    small_fragments: bool
    child_lifetime: float
    ike_lifetime: float
    dpd: float
    active: float
    commands: int
    #: The end that never initiates has no children, but a template for what it is asked.
    templates: bool

    @property
    def gentle(self) -> bool:
        """Whether traffic must never be without an SA."""
        return not self.rough and self.weather.loss <= 0.1

    @property
    def twofold(self) -> bool:
        """Whether both ends set up IKE SAs, so that there may be two for a while."""
        return self.both_initiate and not self.nat

    def address(self, node: str) -> str:
        """The address of the gateway itself."""
        if node == RIGHT:
            return "2001:db8::2" if self.ipv6 else "192.0.2.2"
        if self.nat:
            return INSIDE
        return "2001:db8::1" if self.ipv6 else "198.51.100.1"

    def limits(self, node: str) -> Limits:
        """A responder with ``cookies`` asks every stranger for one."""
        return Limits(cookie_threshold=0) if self.cookies and node == RIGHT else Limits()

    def initiates(self, node: str) -> bool:
        """Whether this end sets up the IKE SA by itself."""
        return node == LEFT or self.twofold

    def peer(self, node: str) -> PeerConfig:
        """The configuration of ``node``: its one peer, the other end."""
        other = RIGHT if node == LEFT else LEFT
        behind_nat = self.nat and other == LEFT
        asked = self.templates and node == RIGHT
        networks = PUBLIC if behind_nat else (self.address(other),)
        paths = () if behind_nat else (Path(self.address(node), self.address(other)),)
        groups: tuple[Transform, ...] = (_X25519,)
        if self.other_group_first:
            groups = (_X25519, _ECP_256) if node == LEFT else (_ECP_256,)
        return PeerConfig(
            name=other,
            identities=(
                IdentityConfig(
                    name="id",
                    local_id=Identity.fqdn(f"{node}.example"),
                    remote_id=Identity.fqdn(f"{other}.example"),
                    psk=_PSK,
                    templates=("any",) if asked else (),
                ),
            ),
            children=()
            if asked
            else tuple(self._child(node, number) for number in range(self.children)),
            templates=(self._template(node),) if asked else (),
            ike_proposals=(Proposal(Protocol.IKE, (_AES_GCM, _PRF, *groups)),),
            paths=paths,
            remote_networks=tuple(ipaddress.ip_network(text) for text in networks),
            initiate=self.initiates(node),
            ike_lifetime=Lifetime(seconds=self.ike_lifetime, margin=0.3, jitter=0.2),
            retransmission=Retransmission(base=0.5, factor=1.6, limit=6.0, tries=8),
            dpd_interval=self.dpd,
            keepalive_interval=min(20.0, self.nat_timeout / 2),
            fragment_size=400 if self.small_fragments else 1280,
            childless=Childless.PREFER if self.childless else Childless.NEVER,
            retry_interval=1.0,
            retry_limit=8.0,
        )

    def _child(self, node: str, number: int) -> ChildConfig:
        own, remote = (1, 2) if node == LEFT else (2, 1)
        transforms = [_AES_GCM]
        if self.pfs:
            transforms.append(_X25519)
        transforms += (_ESN, _NO_ESN) if self.esn else (_NO_ESN,)
        return ChildConfig(
            name=f"net{number}",
            local_ts=self._networks(f"10.{own}.{number}"),
            remote_ts=self._networks(f"10.{remote}.{number}"),
            proposals=(Proposal(Protocol.ESP, tuple(transforms)),),
            reqid=number + (1 if node == LEFT else 101),
            lifetime=Lifetime(seconds=self.child_lifetime, margin=0.3, jitter=0.2),
            start=Start.ON_TRAFFIC if self.on_traffic else Start.NOW,
        )

    def _template(self, node: str) -> TemplateConfig:
        """Whatever the other end asks for within its site and this one."""
        child = self._child(node, 0)
        return TemplateConfig(
            name="any",
            local_ts=(TrafficSelector.network("10.2.0.0/16"),),
            remote_ts=(TrafficSelector.network("10.1.0.0/16"),),
            proposals=child.proposals,
            reqids=(1000, 2000),
            lifetime=child.lifetime,
        )

    def _networks(self, prefix: str) -> tuple[TrafficSelector, ...]:
        """Many selectors make messages that need fragments."""
        if not self.small_fragments:
            return (TrafficSelector.network(f"{prefix}.0/24"),)
        return tuple(TrafficSelector.network(f"{prefix}.{host}/28") for host in range(0, 192, 16))


def draw(seed: int) -> Profile:
    """The profile of a seed."""
    rng = seeded(f"profile {seed}")
    rough = rng.random() < 0.6
    nat = rng.random() < 0.35
    loss = rng.choice((0.0, 0.02, 0.1)) if not rough else rng.choice((0.0, 0.1, 0.3, 0.5))
    profile = Profile(
        seed=seed,
        weather=Weather(
            loss=loss,
            duplicate=rng.choice((0.0, 0.1, 0.3)),
            delay=rng.choice((0.001, 0.02, 0.15)),
            jitter=rng.choice((0.0, 0.02, 0.3)),
            straggle=rng.choice((0.0, 0.05)),
        ),
        rough=rough,
        nat=nat,
        nat_timeout=rng.choice((30.0, 120.0)),
        ipv6=not nat and rng.random() < 0.2,
        both_initiate=rng.random() < 0.5,
        children=rng.choice((1, 1, 2, 3)),
        pfs=rng.random() < 0.4,
        esn=rng.random() < 0.5,
        on_traffic=rng.random() < 0.2,
        childless=rng.random() < 0.15,
        other_group_first=rng.random() < 0.15,
        cookies=rng.random() < 0.2,
        small_fragments=rng.random() < 0.2,
        child_lifetime=rng.choice((30.0, 60.0, 3600.0)),
        ike_lifetime=rng.choice((45.0, 90.0, 3600.0)),
        dpd=rng.choice((5.0, 10.0, 20.0)),
        active=rng.uniform(40.0, 90.0),
        commands=rng.randint(2, 14),
        templates=False,
    )
    # Drawn last, so that the other half of the seeds is what it was before there were templates.
    possible = not profile.twofold and not profile.on_traffic
    return replace(profile, templates=possible and rng.random() < 0.5)


def calm(**changes: Any) -> Profile:
    """A run without trouble, for tests that make their own: one child, left initiates."""
    plain = Profile(
        seed=0,
        weather=Weather(),
        rough=True,
        nat=False,
        nat_timeout=120.0,
        ipv6=False,
        both_initiate=False,
        children=1,
        pfs=False,
        esn=True,
        on_traffic=False,
        childless=False,
        other_group_first=False,
        cookies=False,
        small_fragments=False,
        child_lifetime=3600.0,
        ike_lifetime=28800.0,
        dpd=10.0,
        active=60.0,
        commands=0,
        templates=False,
    )
    return replace(plain, **changes)


def changed(config: PeerConfig, rng: Random) -> PeerConfig:
    """Another configuration of the same peer, as an operator of the site might apply it."""
    match rng.randrange(4):
        case 0 if len(config.children) > 1:
            return replace(config, children=config.children[:-1])
        case 1:
            life = Lifetime(seconds=rng.choice((20.0, 600.0)), margin=0.3, jitter=0.2)
            return replace(
                config, children=tuple(replace(child, lifetime=life) for child in config.children)
            )
        case 2:
            return replace(config, dpd_interval=rng.choice((3.0, 15.0)))
        case _:
            return replace(
                config, ike_lifetime=Lifetime(seconds=rng.choice((25.0, 900.0)), margin=0.3)
            )
