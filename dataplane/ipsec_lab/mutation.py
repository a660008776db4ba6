"""Broken messages for the fuzz tests: small, reproducible damage to octets that were once right."""

from __future__ import annotations

import random

from ipsec_ike.wire.header import HEADER_LENGTH

#: What parsers stumble over: nothing, the smallest, lengths around a header, signs, all ones.
_EDGES = (0, 1, 4, 7, 8, 0x7F, 0x80, 0xFE, 0xFF)


def mutate(data: bytes, rng: random.Random, *, most: int = 4) -> bytes:
    """Up to ``most`` times: flip a bit, set an edge value, cut, double or insert octets."""
    result = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(result)) if result else 0
        match rng.randrange(6):
            case 0 if result:
                result[at] ^= 1 << rng.randrange(8)
            case 1 if result:
                result[at] = rng.choice(_EDGES)
            case 2:
                del result[at : at + rng.randint(1, 8)]
            case 3:
                result[at:at] = result[at : at + rng.randint(1, 40)]
            case 4:
                result[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del result[at:]
    return bytes(result)


def with_length(data: bytes) -> bytes:
    """Repair the length in the header, so that what is behind it is looked at."""
    if len(data) < HEADER_LENGTH:
        return data
    return data[:24] + len(data).to_bytes(4) + data[28:]
