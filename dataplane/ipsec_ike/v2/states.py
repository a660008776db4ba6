"""The states of an IKE SA.

An IKE SA is CREATED and goes CONNECTING with IKE_SA_INIT. Authentication makes it ESTABLISHED.
While a request of ours to rekey it is under way it is REKEYING; back to ESTABLISHED if that fails.
Once there is a successor, whoever asked for it, it is REKEYED: its children have moved and it only
waits to be deleted. DELETING begins when we decide to end it or are told to: what is left is to
bring a Delete to the peer, or to answer repetitions of the last request for a while.

A successor is born by CREATE_CHILD_SA and is ESTABLISHED without ever CONNECTING; until a collision
of two rekeys is decided it is `pending`: it answers, but it sends nothing and has no children.

    CREATED     -> CONNECTING    IKE_SA_INIT was sent or answered
                -> ESTABLISHED   successor of a rekeyed IKE SA
    CONNECTING  -> ESTABLISHED   both sides are authenticated
                -> DELETING      refused, silent or abandoned
    ESTABLISHED -> REKEYING      our request to rekey is sent
                -> REKEYED       we answered the peer's
                -> DELETING
    REKEYING    -> ESTABLISHED   our request failed
                -> REKEYED       a successor took over
                -> DELETING
    REKEYED     -> DELETING      by the winner's Delete, or by ours when it does not come
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """See above."""

    CREATED = "created"
    CONNECTING = "connecting"
    ESTABLISHED = "established"
    REKEYING = "rekeying"
    REKEYED = "rekeyed"
    DELETING = "deleting"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.CREATED: frozenset({State.CONNECTING, State.ESTABLISHED}),
    State.CONNECTING: frozenset({State.ESTABLISHED, State.DELETING}),
    State.ESTABLISHED: frozenset({State.REKEYING, State.REKEYED, State.DELETING}),
    State.REKEYING: frozenset({State.ESTABLISHED, State.REKEYED, State.DELETING}),
    State.REKEYED: frozenset({State.DELETING}),
    State.DELETING: frozenset(),
}
