"""Which payloads a message may and must have (RFC 7296 1.2-1.4, appendix C).

A rule is (type, fewest, most). A known payload without a rule is not allowed in that message.
Notify and Vendor ID may be anywhere in any number; payloads of unknown types pass, they are
ignored. The minimum does not hold for a response with an error notification or a COOKIE: it says
why the rest is missing.

What a table of counts cannot say is left to the exchange, such as that TSi and TSr come together
and that the first IKE_AUTH request needs an IDi while later ones must not have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ipsec_ike.errors import InvalidSyntax
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.wire.payloads import DECODERS, NotifyPayload, Payload


class Rule(NamedTuple):
    """How often a payload may occur."""

    type: PayloadType
    fewest: int
    most: int


#: Certificates and requests for them, deletes: bounded by the limit on payloads, not by rules.
_MANY: Final = 65535

_FIRST: Final = (
    Rule(PayloadType.SA, 1, 1),
    Rule(PayloadType.KE, 1, 1),
    Rule(PayloadType.NONCE, 1, 1),
    Rule(PayloadType.CERTREQ, 0, _MANY),
)
_AUTH: Final = (
    Rule(PayloadType.IDi, 0, 1),
    Rule(PayloadType.IDr, 0, 1),
    Rule(PayloadType.CERT, 0, _MANY),
    Rule(PayloadType.CERTREQ, 0, _MANY),
    Rule(PayloadType.AUTH, 0, 1),
    Rule(PayloadType.EAP, 0, 1),
    Rule(PayloadType.CP, 0, 1),
    Rule(PayloadType.SA, 0, 1),
    Rule(PayloadType.TSi, 0, 1),
    Rule(PayloadType.TSr, 0, 1),
)
_CREATE: Final = (
    Rule(PayloadType.SA, 1, 1),
    Rule(PayloadType.NONCE, 1, 1),
    Rule(PayloadType.KE, 0, 1),
    Rule(PayloadType.TSi, 0, 1),
    Rule(PayloadType.TSr, 0, 1),
    # Peers of RouterOS repeat it when they rekey.
    Rule(PayloadType.CP, 0, 1),
)
_INFORMATIONAL: Final = (
    Rule(PayloadType.DELETE, 0, _MANY),
    Rule(PayloadType.CP, 0, 1),
)
_INTERMEDIATE: Final = (Rule(PayloadType.KE, 0, 1),)

PAYLOAD_RULES: Final[dict[tuple[int, bool], tuple[Rule, ...]]] = {
    (ExchangeType.IKE_SA_INIT, False): _FIRST,
    (ExchangeType.IKE_SA_INIT, True): _FIRST,
    (ExchangeType.IKE_AUTH, False): _AUTH,
    (ExchangeType.IKE_AUTH, True): _AUTH,
    (ExchangeType.CREATE_CHILD_SA, False): _CREATE,
    (ExchangeType.CREATE_CHILD_SA, True): _CREATE,
    (ExchangeType.INFORMATIONAL, False): _INFORMATIONAL,
    (ExchangeType.INFORMATIONAL, True): _INFORMATIONAL,
    (ExchangeType.IKE_INTERMEDIATE, False): _INTERMEDIATE,
    (ExchangeType.IKE_INTERMEDIATE, True): _INTERMEDIATE,
}

_BOUNDS: Final = {
    key: {int(rule.type): rule for rule in rules} for key, rules in PAYLOAD_RULES.items()
}
_NEEDED: Final = {
    key: tuple((int(rule.type), rule.fewest) for rule in rules if rule.fewest)
    for key, rules in PAYLOAD_RULES.items()
}
_ANYWHERE: Final = frozenset({int(PayloadType.NOTIFY), int(PayloadType.VENDOR)})
_FIRST_ERROR_FREE: Final = 16384


def check(exchange: int, is_response: bool, payloads: Iterable[Payload]) -> None:
    """Raises InvalidSyntax where a payload is missing, too many or out of place."""
    rules = _BOUNDS.get((exchange, is_response))
    if rules is None:
        raise InvalidSyntax(f"exchange type {exchange}")
    counts: dict[int, int] = {}
    refused = False
    for payload in payloads:
        kind = payload.type
        counts[kind] = counts.get(kind, 0) + 1
        if (
            is_response
            and isinstance(payload, NotifyPayload)
            and (payload.notify < _FIRST_ERROR_FREE or payload.notify == NotifyType.COOKIE)
        ):
            refused = True
    for kind, count in counts.items():
        if kind in _ANYWHERE:
            continue
        rule = rules.get(kind)
        if rule is not None:
            if count > rule.most:
                raise InvalidSyntax(f"{count} payloads of type {rule.type.name}")
        elif kind in DECODERS:
            raise InvalidSyntax(f"payload of type {PayloadType(kind).name} does not belong here")
    if refused:
        return
    for kind, fewest in _NEEDED[exchange, is_response]:
        if counts.get(kind, 0) < fewest:
            raise InvalidSyntax(f"payload of type {PayloadType(kind).name} is missing")
