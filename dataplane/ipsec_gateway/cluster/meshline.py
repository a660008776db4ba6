"""One line of the mesh stream: what a gateway says of itself, every second. Pure.

A line is JSON in one row:

=============  =====================================================================================
``v``          1
``gateway``    name of the node
``incarnation``  hex, another one for each life of the process
``seq``        counts the lines of an incarnation, on all streams together
``draining``   whether it hands everything over
``gives_up``   keys (namespace/name) of peers that it cannot forward for
``digest``     of ``owned``, hex
``owned``      remote subnets by key of each peer that it owns; left out while ``digest`` is the one
               of this stream's line before
``ages``       seconds for which it has owned each; goes with ``owned``
``use``        those of ``owned`` that may go in clear text while nobody carries them (all of their
               policies are ``level: use``); goes with ``owned``, left out if there are none
``mac``        HMAC-SHA256, hex, over the nonce of the request and the canonical JSON of the rest
=============  =====================================================================================

The client chooses the nonce, so that a recorded stream is worth nothing on another connection, and
``seq`` must grow, so that no line counts twice. The request has a MAC of its own: who does not know
the key is told nothing. Names of peers and networks are no secrets to who can read the wire.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from ipaddress import ip_network
from typing import Any, Final

PATH: Final = "/mesh"
#: Header of the request: hex of 16 to 64 octets, anew for each.
NONCE_HEADER: Final = "X-Kube-Ipsec-Nonce"
#: Header of the request: MAC over the nonce.
MAC_HEADER: Final = "X-Kube-Ipsec-Mac"
#: Octets of the longest line: a few thousand peers with some subnets each.
LONGEST: Final = 4 << 20
#: Octets of the shortest key that is accepted.
SHORTEST_KEY: Final = 16

_LINE: Final = b"kube-ipsec mesh line\0"
_REQUEST: Final = b"kube-ipsec mesh request\0"


class BadLine(ValueError):
    """What came is no line of somebody who knows the key. The text says why, in one word."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line. ``owned`` None: as ``digest`` says, the same as before on this stream."""

    gateway: str
    incarnation: str
    seq: int
    draining: bool = False
    gives_up: frozenset[str] = frozenset()
    digest: str = ""
    owned: Mapping[str, tuple[str, ...]] | None = None
    ages: Mapping[str, float] = field(default_factory=dict)
    use: frozenset[str] = frozenset()


def digest_of(owned: Mapping[str, tuple[str, ...]]) -> str:
    """The digest of what a gateway owns."""
    plain = {key: sorted(subnets) for key, subnets in owned.items()}
    return blake2b(_canonical(plain), digest_size=16).hexdigest()


def request_headers(key: bytes, nonce: str) -> dict[str, str]:
    """Headers of ``GET /mesh``. ``nonce``: hex of at least 16 octets of fresh randomness."""
    return {NONCE_HEADER: nonce, MAC_HEADER: _mac(key, _REQUEST, nonce, b"")}


def request_nonce(key: bytes, headers: Mapping[str, str]) -> str | None:
    """The nonce of a request of somebody who knows the key, else None."""
    nonce = headers.get(NONCE_HEADER, "")
    if not 32 <= len(nonce) <= 128 or not nonce.isascii() or not nonce.isalnum():
        return None
    theirs = headers.get(MAC_HEADER, "")
    same = hmac.compare_digest(theirs.encode(), _mac(key, _REQUEST, nonce, b"").encode())
    return nonce if same else None


def encode(line: Line, key: bytes, nonce: str) -> bytes:
    """The line for the stream of the request with this nonce, with its end."""
    document: dict[str, Any] = {
        "v": 1,
        "gateway": line.gateway,
        "incarnation": line.incarnation,
        "seq": line.seq,
        "draining": line.draining,
        "gives_up": sorted(line.gives_up),
        "digest": line.digest,
    }
    if line.owned is not None:
        document["owned"] = {peer: list(subnets) for peer, subnets in line.owned.items()}
        document["ages"] = {peer: round(age, 1) for peer, age in line.ages.items()}
        if line.use:
            document["use"] = sorted(line.use)
    document["mac"] = _mac(key, _LINE, nonce, _canonical(document))
    return _canonical(document) + b"\n"


def decode(data: bytes, key: bytes, nonce: str) -> Line:
    """The line in ``data``. Raises BadLine."""
    if len(data) > LONGEST:
        raise BadLine("long")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadLine("syntax") from exc
    if not isinstance(document, dict):
        raise BadLine("syntax")
    mac = document.pop("mac", None)
    if not isinstance(mac, str):
        raise BadLine("mac")
    try:
        ours = _mac(key, _LINE, nonce, _canonical(document))
    except ValueError as exc:  # NaN and the like, which json.loads takes
        raise BadLine("syntax") from exc
    if not hmac.compare_digest(mac.encode(), ours.encode()):
        raise BadLine("mac")
    if document.get("v") != 1:
        raise BadLine("version")
    try:
        return _line(document)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadLine("contents") from exc


def _line(document: Mapping[str, Any]) -> Line:
    owned, ages = document.get("owned"), document.get("ages", {})
    return Line(
        gateway=_text(document["gateway"]),
        incarnation=_text(document["incarnation"]),
        seq=_number(document["seq"]),
        draining=document["draining"] is True,
        gives_up=frozenset(map(_text, document["gives_up"])),
        digest=_text(document["digest"]),
        owned=None
        if owned is None
        else {
            _text(peer): tuple(str(ip_network(subnet)) for subnet in subnets)
            for peer, subnets in owned.items()
        },
        ages={_text(peer): float(age) for peer, age in ages.items()},
        use=frozenset(map(_text, document.get("use", ()))),
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 512:
        raise ValueError("no text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("no number")
    return value


def _canonical(document: object) -> bytes:
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def _mac(key: bytes, purpose: bytes, nonce: str, data: bytes) -> str:
    if len(key) < SHORTEST_KEY:
        raise ValueError("the mesh key is too short")
    return hmac.new(key, purpose + nonce.encode() + b"\0" + data, sha256).hexdigest()
