"""The dearest handshake, group 18 (modp8192), against what the library takes for its arithmetic."""

from __future__ import annotations

import os
import time
import warnings

from ipsec_ike.actions import SendDatagram
from ipsec_ike.crypto.modp_primes import PRIMES
from ipsec_ike.engine import Engine
from ipsec_ike.events import IkeSaUp
from ipsec_ike.inputs import Datagram
from ipsec_ike.numbers import Group
from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_peers import initiators, responder
from ipsec_lab.bench_report import Row
from ipsec_lab.netns import LabError

_ADDRESSES = {"a": "192.0.2.1", "b": "198.51.100.1"}


def modp(settings: Settings) -> list[Row]:
    """CPU of both ends together, in one process and without a network."""
    ours, bare = [], []
    for _ in range(3 * settings.runs):
        ours.append(_cpu_of_handshake() * 1000)
        bare.append(_cpu_of_library() * 1000)
    return [
        Row(
            what="modp8192 handshake",
            unit="ms of CPU, both ends",
            ours=tuple(ours),
            theirs=tuple(bare),
            at_most=2,
            reference="bare library",
            note="ours: two engines in one process from IKE_SA_INIT to the child; bare: two key "
            "generations and two exchanges of the same group by `cryptography`",
        )
    ]


def _cpu_of_handshake() -> float:
    engines = {}
    for side, configured in (
        ("a", initiators(1, _ADDRESSES, group=Group.MODP_8192)),
        ("b", responder(_ADDRESSES, group=Group.MODP_8192)),
    ):
        engine = engines[_ADDRESSES[side]] = Engine(rng=os.urandom)
        engine.configure(configured, 0.0)
    start = time.process_time()
    engines[_ADDRESSES["a"]].initiate("peer-0", 0.0)
    up = 0
    moved = True
    while moved:
        moved = False
        for engine in engines.values():
            for action in engine.take_actions():
                up += isinstance(action, IkeSaUp)
                if isinstance(action, SendDatagram):
                    moved = True
                    far = engines[action.remote.address]
                    far.receive(Datagram(action.data, action.remote, action.local), 0.0)
    if up != 2:
        raise LabError("the modp8192 handshake did not come to its end")
    return time.process_time() - start


def _cpu_of_library() -> float:
    with warnings.catch_warnings():
        # cryptography warns that it will drop finite-field Diffie-Hellman: ipsec_ike/crypto/modp.py
        # has what then takes over.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        from cryptography.hazmat.primitives.asymmetric import dh

        parameters = dh.DHParameterNumbers(PRIMES[Group.MODP_8192], 2).parameters()
        start = time.process_time()
        one, other = parameters.generate_private_key(), parameters.generate_private_key()
        if one.exchange(other.public_key()) != other.exchange(one.public_key()):
            raise LabError("the library's two secrets differ")
        return time.process_time() - start
