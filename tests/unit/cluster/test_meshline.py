"""Lines of the mesh: what was signed is read, anything else is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gateway.cluster import meshline
from ipsec_gateway.cluster.meshline import BadLine, Line

KEY = b"k" * 32
NONCE = "ab" * 16
LINE = Line(
    gateway="node-1",
    incarnation="00ff",
    seq=7,
    gives_up=frozenset({"ns/x"}),
    digest="aa",
    owned={"ns/hq": ("10.2.0.0/16", "fd00::/64")},
    ages={"ns/hq": 1.5},
)


def test_what_was_encoded_is_decoded() -> None:
    data = meshline.encode(LINE, KEY, NONCE)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert meshline.decode(data, KEY, NONCE) == LINE


def test_the_wire_format_is_fixed() -> None:
    """Route agents and gateways of other releases read it."""
    document = json.loads(meshline.encode(LINE, KEY, NONCE))
    assert document.pop("mac") == "98822dc2a30d34d9815d8348ff9f286bb11d3ad3aeb9ce1e95781051ab7eb8de"
    assert document == {
        "v": 1,
        "gateway": "node-1",
        "incarnation": "00ff",
        "seq": 7,
        "draining": False,
        "gives_up": ["ns/x"],
        "digest": "aa",
        "owned": {"ns/hq": ["10.2.0.0/16", "fd00::/64"]},
        "ages": {"ns/hq": 1.5},
    }


def test_without_a_change_only_the_digest_is_told() -> None:
    line = Line("n", "i", 1, digest="dd")
    data = meshline.encode(line, KEY, NONCE)
    assert b"owned" not in data
    assert meshline.decode(data, KEY, NONCE).owned is None


@pytest.mark.parametrize("nonce", ["cd" * 16, ""])
def test_a_line_of_another_connection_is_refused(nonce: str) -> None:
    with pytest.raises(BadLine, match="mac"):
        meshline.decode(meshline.encode(LINE, KEY, NONCE), KEY, nonce)


def test_a_line_of_somebody_with_another_key_is_refused() -> None:
    with pytest.raises(BadLine, match="mac"):
        meshline.decode(meshline.encode(LINE, b"x" * 32, NONCE), KEY, NONCE)


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_octet_can_be_changed(place: int, change: int) -> None:
    data = bytearray(meshline.encode(LINE, KEY, NONCE))
    place %= len(data) - 1
    data[place] ^= change
    try:
        line = meshline.decode(bytes(data), KEY, NONCE)
    except BadLine:
        return
    # Another way to write the same: an upper-case escape, white space.
    assert line == LINE


@given(st.binary(max_size=200))
def test_anything_is_refused_in_good_order(data: bytes) -> None:
    with pytest.raises(BadLine):
        meshline.decode(data, KEY, NONCE)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("v", 2, "version"),
        ("gateway", "", "contents"),
        ("gateway", 5, "contents"),
        ("seq", -1, "contents"),
        ("seq", True, "contents"),
        ("gives_up", 5, "contents"),
        ("owned", {"ns/a": ["10.0.0.0/99"]}, "contents"),
        ("owned", ["x"], "contents"),
        ("ages", {"a": "x"}, "contents"),
    ],
)
def test_signed_nonsense_is_refused(field: str, value: object, why: str) -> None:
    document = json.loads(meshline.encode(LINE, KEY, NONCE))
    del document["mac"]
    document[field] = value
    document["mac"] = meshline._mac(KEY, meshline._LINE, NONCE, meshline._canonical(document))
    with pytest.raises(BadLine, match=why):
        meshline.decode(json.dumps(document).encode(), KEY, NONCE)


def test_only_who_knows_the_key_may_ask() -> None:
    headers = meshline.request_headers(KEY, NONCE)
    assert meshline.request_nonce(KEY, headers) == NONCE
    assert meshline.request_nonce(b"x" * 32, headers) is None
    assert meshline.request_nonce(KEY, {**headers, meshline.NONCE_HEADER: "cd" * 16}) is None
    assert meshline.request_nonce(KEY, {}) is None
    assert meshline.request_nonce(KEY, meshline.request_headers(KEY, "ab")) is None


def test_a_short_key_is_no_key() -> None:
    with pytest.raises(ValueError, match="too short"):
        meshline.request_headers(b"short", NONCE)


def test_the_digest_does_not_depend_on_order() -> None:
    one = {"a": ("10.0.0.0/8", "10.1.0.0/16"), "b": ()}
    two = {"b": (), "a": ("10.1.0.0/16", "10.0.0.0/8")}
    assert meshline.digest_of(one) == meshline.digest_of(two)
    assert meshline.digest_of(one) != meshline.digest_of({"a": ()})
