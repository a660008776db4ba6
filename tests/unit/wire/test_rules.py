"""Which payloads a message may and must have."""

from __future__ import annotations

import pytest

from ipsec_ike.errors import InvalidSyntax
from ipsec_ike.identity import Identity
from ipsec_ike.numbers import ExchangeType, NotifyType, PayloadType
from ipsec_ike.proposal import Proposal, Transform
from ipsec_ike.selectors import TrafficSelector
from ipsec_ike.wire.payloads import (
    AuthPayload,
    CpPayload,
    DeletePayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorPayload,
)
from ipsec_ike.wire.rules import PAYLOAD_RULES, check

SA = SaPayload((Proposal(1, (Transform(1, 20, 256),)),))
KE = KePayload(31, b"k")
NONCE = NoncePayload(bytes(16))
TSi = TsPayload(PayloadType.TSi, (TrafficSelector.network("10.0.0.0/8"),))
TSr = TsPayload(PayloadType.TSr, (TrafficSelector.network("10.0.0.0/8"),))
IDi = IdPayload(PayloadType.IDi, Identity.fqdn("a"))
AUTH = AuthPayload(2, b"a")
CP = CpPayload(1)
DELETE = DeletePayload(1)
UNKNOWN = UnknownPayload(200, False, b"")
VENDOR = VendorPayload(b"v")

INIT, AUTHX, CREATE, INFO = (
    ExchangeType.IKE_SA_INIT,
    ExchangeType.IKE_AUTH,
    ExchangeType.CREATE_CHILD_SA,
    ExchangeType.INFORMATIONAL,
)


def notify(kind: NotifyType) -> NotifyPayload:
    return NotifyPayload(kind)


@pytest.mark.parametrize(
    ("exchange", "response", "payloads"),
    [
        pytest.param(INIT, False, [SA, KE, NONCE], id="init"),
        pytest.param(INIT, False, [VENDOR, NONCE, KE, SA, UNKNOWN], id="any order"),
        pytest.param(INIT, True, [notify(NotifyType.COOKIE)], id="cookie"),
        pytest.param(INIT, True, [notify(NotifyType.INVALID_KE_PAYLOAD)], id="other group"),
        pytest.param(AUTHX, False, [IDi, AUTH, SA, TSi, TSr, CP], id="auth"),
        pytest.param(AUTHX, False, [IDi, AUTH], id="childless"),
        pytest.param(AUTHX, True, [notify(NotifyType.AUTHENTICATION_FAILED)], id="refused"),
        pytest.param(CREATE, False, [SA, NONCE, TSi, TSr], id="child without PFS"),
        pytest.param(CREATE, False, [CP, SA, NONCE, KE, TSi, TSr], id="CP in a rekey"),
        pytest.param(CREATE, True, [SA, NONCE, KE], id="IKE rekey"),
        pytest.param(CREATE, True, [notify(NotifyType.TEMPORARY_FAILURE)], id="collision"),
        pytest.param(INFO, False, [], id="DPD"),
        pytest.param(INFO, True, [DELETE, DELETE], id="deletes"),
        pytest.param(ExchangeType.IKE_INTERMEDIATE, False, [KE], id="intermediate"),
    ],
)
def test_allowed(exchange: int, response: bool, payloads: list[Payload]) -> None:
    check(exchange, response, payloads)


@pytest.mark.parametrize(
    ("exchange", "response", "payloads"),
    [
        pytest.param(INIT, False, [SA, KE], id="no nonce"),
        pytest.param(INIT, False, [SA, SA, KE, NONCE], id="two SA"),
        pytest.param(INIT, False, [SA, KE, NONCE, AUTH], id="AUTH in the clear"),
        pytest.param(INIT, False, [notify(NotifyType.COOKIE)], id="a request is never excused"),
        pytest.param(INIT, True, [notify(NotifyType.NAT_DETECTION_SOURCE_IP)], id="status only"),
        pytest.param(AUTHX, False, [IDi, IDi], id="two identities"),
        pytest.param(CREATE, False, [SA, TSi, TSr], id="rekey without nonce"),
        pytest.param(CREATE, True, [notify(NotifyType.TEMPORARY_FAILURE), DELETE], id="misplaced"),
        pytest.param(INFO, False, [KE], id="KE in INFORMATIONAL"),
        pytest.param(99, False, [], id="unknown exchange"),
    ],
)
def test_refused(exchange: int, response: bool, payloads: list[Payload]) -> None:
    with pytest.raises(InvalidSyntax):
        check(exchange, response, payloads)


def test_requests_and_responses_of_every_exchange_have_rules() -> None:
    assert set(PAYLOAD_RULES) == {(e, r) for e in ExchangeType for r in (False, True)}
