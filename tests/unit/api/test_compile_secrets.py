"""Keys: their forms, their faults, and that they show up nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ipsec_api import compile as compiler
from ipsec_api.compile import CompileResult
from ipsec_api.documents import parse_object, snapshot_of
from ipsec_api.tunnel import TunnelConfig

Make = Callable[..., dict[str, Any]]
Compiled = Callable[..., CompileResult]


def reasons(result: CompileResult) -> list[tuple[str, str, str]]:
    return [(r.name, r.field, r.reason) for r in result.rejections]


# --- secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("plain text", b"plain text"),
        ("with newline\n", b"with newline"),
        ("with newline\r\n", b"with newline"),
        ("two newlines\n\n", b"two newlines\n"),
        ("0x00ff10", b"\x00\xff\x10"),
        ("0xDEADbeef\n", b"\xde\xad\xbe\xef"),
        ("0Xff", b"0Xff"),
        ("schön", "schön".encode()),
    ],
)
def test_forms_of_a_pre_shared_key(make: Make, compiled: Compiled, value: str, key: bytes) -> None:
    result = compiled(make("Secret", "hq-psk", psk=value), make("IPsecPeer"))
    identity = result.tunnels[0].identities[0]
    assert identity.psk.get_secret_value() == key
    assert identity.psk_previous is None


def test_previous_key_of_a_rotation(make: Make, compiled: Compiled) -> None:
    secret = make("Secret", "hq-psk", **{"psk": "new", "psk-previous": "0x6f6c64"})
    identity = compiled(secret, make("IPsecPeer")).tunnels[0].identities[0]
    assert identity.psk.get_secret_value() == b"new"
    assert identity.psk_previous is not None
    assert identity.psk_previous.get_secret_value() == b"old"


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (None, "SecretNotFound", "no Secret default/hq-psk: create it with the key psk"),
        ({"other": "x"}, "KeyMissing", "has no key psk: add it"),
        ({"psk": ""}, "KeyMissing", "is empty"),
        ({"psk": "\n"}, "KeyMissing", "is empty"),
        ({"psk": "0x"}, "KeyMissing", "is empty"),
        ({"psk": "0xabc"}, "Invalid", "is not hexadecimal"),
        ({"psk": "0xfeedfaceschrott"}, "Invalid", "is not hexadecimal"),
        ({"psk": "good", "psk-previous": "0xfeedfaceschrott"}, "Invalid", "key psk-previous of"),
    ],
)
def test_keys_that_cannot_be_had(
    make: Make, compiled: Compiled, data: dict[str, str] | None, reason: str, message: str
) -> None:
    secrets = [] if data is None else [make("Secret", "hq-psk", **data)]
    result = compiled(*secrets, make("IPsecPeer"))
    assert not result.tunnels
    assert reasons(result) == [("hq", "spec.authentication.secretRef", reason)]
    assert message in result.rejections[0].message
    assert "feedface" not in str(result)
    wanted = "Accepted" if reason == "Invalid" else "ResolvedRefs"
    assert result.rejections[0].condition == wanted


def test_a_secret_of_another_namespace_is_out_of_reach(make: Make, compiled: Compiled) -> None:
    secret = make("Secret", "hq-psk")
    secret["metadata"]["namespace"] = "other"
    result = compiled(secret, make("IPsecPeer"))
    assert reasons(result) == [("hq", "spec.authentication.secretRef", "SecretNotFound")]


def test_secrets_show_nowhere(make: Make, compiled: Compiled, secret_text: str) -> None:
    other = "another-long-secret-value"
    objects = [
        make("Secret", "hq-psk", **{"psk": secret_text, "psk-previous": other}),
        make("IPsecPeer"),
        make("IPsecPolicy", "p", proposal={"encAlgorithms": ["3des"]}),
    ]
    snapshot = snapshot_of(parse_object(o) for o in objects)
    result = compiler.compile(snapshot)
    tunnel = result.tunnels[0]
    dump = json.dumps(tunnel.model_dump(exclude={"identities"}))
    shown = f"{snapshot!r} {snapshot} {result!r} {result} {tunnel!r} {tunnel} {dump}"
    shown += f"{tunnel.model_dump()} {tunnel.identities[0]} {[str(r) for r in result.rejections]}"
    for value in (secret_text, other):
        for form in (value, value.encode().hex(), repr(value.encode())[2:-1]):
            assert form not in shown
            assert (form in tunnel.to_json()) is (form == value.encode().hex())


def test_json_round_trip_keeps_everything(make: Make, compiled: Compiled) -> None:
    secret = make("Secret", "hq-psk", **{"psk": "0x00ff80", "psk-previous": "old"})
    policy = make(
        "IPsecPolicy",
        "p",
        selectors=[{"src": "10.1.0.0/24", "dst": "10.3.0.0/24", "protocol": "tcp", "dstPort": 80}],
    )
    (tunnel,) = compiled(secret, make("IPsecPeer"), policy).tunnels
    again = TunnelConfig.from_json(tunnel.to_json())
    assert again == tunnel
    assert again.identities[0].psk.get_secret_value() == b"\x00\xff\x80"
    assert again.identities[0].psk_previous == tunnel.identities[0].psk_previous
    assert again.to_json() == tunnel.to_json()
    # As the operator and the gateway do it, through plain data.
    assert TunnelConfig.model_validate(json.loads(tunnel.to_json())) == tunnel


def test_a_broken_rendered_secret_does_not_quote_the_key(
    make: Make, compiled: Compiled, secret_text: str
) -> None:
    (tunnel,) = compiled(make("Secret", "hq-psk"), make("IPsecPeer")).tunnels
    text = tunnel.to_json().replace(secret_text.encode().hex(), secret_text)
    with pytest.raises(ValueError, match="psk") as caught:
        TunnelConfig.from_json(text)
    assert secret_text not in str(caught.value)
