"""What the fields of an IPsecPeer must say together (CEL and Python).

The API server runs all of these at each write, those of a status included, and copies the schema of
the whole object for each field that a rule looks at: twice if the field is set. That is most of
what a rule costs, so each asks first what ends it for most peers. A field may be looked at before
``has`` of it: ``||`` drops the error of one side if the other one is true.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ipsec_api import cel
from ipsec_api.algorithms import insecure_names
from ipsec_api.rules import Rule
from ipsec_api.scalars import is_cidr, is_ip, network

INSECURE: Final = insecure_names()


def no_default_route(subnets: Iterable[str] | None) -> bool:
    return all(network(s).prefixlen != 0 for s in subnets or ())


def _families(subnets: Iterable[str]) -> set[int]:
    return {network(s).version for s in subnets}


def _families_pair(spec: Any) -> bool:
    if spec.local_subnets is None or spec.remote_subnets is None:
        return True
    return _families(spec.local_subnets) == _families(spec.remote_subnets)


def _one_address(text: str) -> bool:
    """Somewhere to initiate to."""
    return not is_cidr(text) or network(text).num_addresses == 1


def _identities(spec: Any) -> tuple[Any, ...]:
    if spec.identities is not None:
        return tuple(spec.identities)
    return () if spec.authentication is None else (spec.authentication,)


def _profile_is_secure(spec: Any) -> bool:
    profile = spec.profile
    if spec.allow_insecure or profile is None:
        return True
    names = {*profile.enc_algorithms, profile.hash, profile.prf, *profile.dh_groups}
    return not names & INSECURE


_BAD = cel.names(INSECURE)

PEER_RULES: Final = (
    Rule(
        cel="has(self.authentication) != has(self.identities)",
        message="no credentials, or two kinds: set exactly one of authentication and identities",
        check=lambda s: (s.authentication is None) != (s.identities is None),
        field="authentication",
        reason="FieldValueRequired",
    ),
    Rule(
        cel="!(has(self.profile) && has(self.profileRef))",
        message="two profiles: remove profile or profileRef",
        check=lambda s: s.profile is None or s.profile_ref is None,
        field="profileRef",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel="!has(self.routing) || !has(self.routing.connectionMark) || (has(self.nat)"
        " && self.nat.mode in ['SNAT', 'Masquerade'])",
        message="connectionMark chooses which connections are translated into the tunnel: set"
        " nat.mode SNAT or Masquerade, or use routingMark to mark IKE and IPsec packets",
        check=lambda s: (
            s.routing is None
            or s.routing.connection_mark is None
            or (s.nat is not None and s.nat.mode in ("SNAT", "Masquerade"))
        ),
        field="routing",
    ),
    Rule(
        cel="has(self.address) || self.passive",
        message="nowhere to initiate to: set address, or passive: true to wait for the peer",
        check=lambda s: s.address is not None or s.passive,
        field="address",
        reason="FieldValueRequired",
    ),
    Rule(
        cel="!self.passive || !has(self.address) || isIP(self.address) || isCIDR(self.address)",
        message="a passive peer has no use for a DNS name: set its IP address or network, leave"
        " address out for anywhere, or remove passive",
        check=lambda s: (
            not s.passive or s.address is None or is_ip(s.address) or is_cidr(s.address)
        ),
        field="address",
    ),
    Rule(
        cel="!isCIDR(self.address) || self.passive || !has(self.address)"
        f" || {cel.is_host('self.address')}",
        message="a network is nowhere to initiate to: set one address, or passive: true",
        check=lambda s: s.passive or s.address is None or _one_address(s.address),
        field="address",
    ),
    Rule(
        cel="!has(self.fallbackAddresses) || size(self.fallbackAddresses) == 0"
        " || has(self.address)",
        message="fallbackAddresses without a first address: set address",
        check=lambda s: not s.fallback_addresses or s.address is not None,
        field="fallbackAddresses",
    ),
    Rule(
        cel="!has(self.fallbackAddresses) || !self.passive"
        " || self.fallbackAddresses.all(a, isIP(a))",
        message="a passive peer has no use for DNS names: write IP addresses in fallbackAddresses,"
        " or remove passive",
        check=lambda s: not s.passive or all(is_ip(a) for a in s.fallback_addresses),
        field="fallbackAddresses",
    ),
    Rule(
        cel="!(self.exchangeMode in ['aggressive', 'base']) || self.allowInsecure",
        message="this mode exposes the identity and the hash of the secret: use ike2 or main, or"
        " set allowInsecure: true",
        check=lambda s: s.exchange_mode not in ("aggressive", "base") or s.allow_insecure,
        field="exchangeMode",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel="self.exchangeMode == 'ike2' || !(has(self.authentication)"
        " && self.authentication.method in ['eap', 'eapRadius']) && !(has(self.identities)"
        " && self.identities.exists(i, i.method in ['eap', 'eapRadius']))",
        message="IKEv1 has no EAP: set exchangeMode: ike2, or another method",
        check=lambda s: (
            s.exchange_mode == "ike2"
            or not any(i.method in ("eap", "eapRadius") for i in _identities(s))
        ),
        field="exchangeMode",
    ),
    Rule(
        cel="!has(self.profile) || self.allowInsecure || (self.profile.encAlgorithms.all(a, !(a in"
        f" {_BAD})) && !(self.profile.hash in {_BAD}) && !(self.profile.prf in {_BAD})"
        f" && self.profile.dhGroups.all(g, !(g in {_BAD})))",
        message="an algorithm that is not safe any more: take another one, or set allowInsecure:"
        " true",
        check=_profile_is_secure,
        field="profile",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel=f"((self.remoteSubnets.all(s, !{cel.is_default_route('s')})"
        " || !has(self.remoteSubnets)) && (!has(self.localSubnets)"
        f" || self.localSubnets.all(s, !{cel.is_default_route('s')}))) || self.allowDefaultRoute",
        message="a default route would take all traffic: name the networks, or set"
        " allowDefaultRoute: true",
        check=lambda s: (
            s.allow_default_route
            or (no_default_route(s.remote_subnets) and no_default_route(s.local_subnets))
        ),
        field="remoteSubnets",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel="!has(self.localSubnets) || !has(self.remoteSubnets) || (self.remoteSubnets.all(r,"
        f" self.localSubnets.exists(l, {cel.same_family('l', 'r')}))"
        " && self.localSubnets.all(l,"
        f" self.remoteSubnets.exists(r, {cel.same_family('l', 'r')})))",
        message="IPv4 on one side only, or IPv6: give both sides networks of each family, or"
        " remove the lone one",
        check=_families_pair,
        field="localSubnets",
    ),
)

IDENTITY_REF_RULES: Final = (
    Rule(
        cel="has(self.secretRef) == (self.method in ['preSharedKey', 'rsaKey', 'eap'])",
        message="secretRef goes with methods preSharedKey, rsaKey and eap: set it there, remove it"
        " elsewhere",
        check=lambda a: (
            (a.secret_ref is not None) == (a.method in ("preSharedKey", "rsaKey", "eap"))
        ),
        field="secretRef",
        reason="FieldValueRequired",
    ),
    Rule(
        cel="has(self.certificateRef) == (self.method in ['certificate', 'eapRadius'])",
        message="certificateRef goes with methods certificate and eapRadius: set it there, remove"
        " it elsewhere",
        check=lambda a: (
            (a.certificate_ref is not None) == (a.method in ("certificate", "eapRadius"))
        ),
        field="certificateRef",
        reason="FieldValueRequired",
    ),
    Rule(
        cel="!has(self.trustBundleRef) || self.method in ['certificate', 'eap']",
        message="trustBundleRef goes with methods certificate and eap: remove it",
        check=lambda a: a.trust_bundle_ref is None or a.method in ("certificate", "eap"),
        field="trustBundleRef",
        reason="FieldValueForbidden",
    ),
    Rule(
        cel="self.matchBy != 'certificate' || self.method in ['certificate', 'eap', 'eapRadius']",
        message="there is no certificate to match by: set matchBy: remoteID, or method certificate",
        check=lambda a: (
            a.match_by != "certificate" or a.method in ("certificate", "eap", "eapRadius")
        ),
        field="matchBy",
    ),
    Rule(
        cel="(self.generatePolicy == 'no') != has(self.policyTemplateGroup)",
        message="generatePolicy and policyTemplateGroup go together: set both, or leave both out",
        check=lambda a: (a.generate_policy == "no") != (a.policy_template_group is not None),
        field="policyTemplateGroup",
        reason="FieldValueRequired",
    ),
    Rule(
        cel="!has(self.localID) || self.localID.type != 'ignore'",
        message="we must call ourselves something: set another type of localID, or leave it out",
        check=lambda a: a.local_id is None or a.local_id.type != "ignore",
        field="localID",
    ),
)

# CEL has no bit operations. kube-proxy uses bits 14 and 15, Cilium 8 to 11 and 16 to 31, Calico 16
# to 31.
MARK_RULES: Final = (
    Rule(
        cel="self.allowMarkConflict || ((!has(self.routingMark) || self.routingMark <= 255)"
        " && (!has(self.connectionMark) || self.connectionMark <= 255))",
        message="marks above 255 are used by kube-proxy, Calico and Cilium: take one up to 255, or"
        " set allowMarkConflict: true",
        check=lambda r: (
            r.allow_mark_conflict
            or ((r.routing_mark or 0) <= 255 and (r.connection_mark or 0) <= 255)
        ),
        field="routingMark",
        reason="FieldValueForbidden",
    ),
)
