"""Message IDs, retransmission and repeated requests of one IKE SA (RFC 7296 2.1-2.3).

The window is 1 in both directions: one request of ours waits for its answer, and of the peer's
requests only the next one is new. The one before is answered again from memory, octet by octet, and
everything else is dropped.
"""

from __future__ import annotations

from enum import Enum

from ipsec_ike.config import Retransmission
from ipsec_ike.sa.timers import NEVER
from ipsec_ike.wire.fragment import Reassembler


class Place(Enum):
    """Where a received request stands."""

    NEW = "new"
    REPEATED = "repeated"
    OUTSIDE = "outside"


class Window:
    """``next_request`` is the ID of our next request, ``expected`` that of the peer's.

    ``request`` and ``response`` hold datagrams as they were sent. ``deadline`` is when the request
    is repeated or given up.
    """

    __slots__ = (
        "deadline",
        "expected",
        "fragments",
        "give_up_at",
        "next_request",
        "reply_fragments",
        "request",
        "response",
        "sent_at",
        "tries",
    )

    def __init__(self, *, next_request: int = 0, expected: int = 0) -> None:
        self.next_request = next_request
        self.expected = expected
        self.request: tuple[bytes, ...] = ()
        self.response: tuple[bytes, ...] = ()
        self.tries = 0
        self.sent_at = 0.0
        self.deadline = NEVER
        self.give_up_at = NEVER
        #: Parts of the peer's next request and of the answer to ours.
        self.fragments: Reassembler | None = None
        self.reply_fragments: Reassembler | None = None

    @property
    def busy(self) -> bool:
        """Whether a request of ours waits for its answer."""
        return bool(self.request)

    def sent(
        self, datagrams: tuple[bytes, ...], now: float, pace: Retransmission, cap: float = NEVER
    ) -> None:
        """A request goes out for the first time. ``cap`` seconds later it is given up at the
        latest."""
        self.request = datagrams
        self.tries = 0
        self.sent_at = now
        self.give_up_at = now + cap
        self.deadline = min(now + pace.base, self.give_up_at)

    def retry(self, now: float, pace: Retransmission) -> bool:
        """The deadline passed: whether to send the request again; if not, the peer is silent."""
        if self.tries >= pace.tries or now >= self.give_up_at:
            return False
        self.tries += 1
        wait = min(pace.base * pace.factor**self.tries, pace.limit)
        self.deadline = min(now + wait, self.give_up_at)
        return True

    def awaits(self, message_id: int) -> bool:
        """Whether a response with this ID answers our request."""
        return bool(self.request) and message_id == self.next_request

    def answered(self) -> None:
        """The response to our request is here and understood, or nobody waits for it any more."""
        self.request = ()
        self.deadline = NEVER
        self.reply_fragments = None
        self.next_request += 1

    def place(self, message_id: int) -> Place:
        """What a request with this ID is to us."""
        if message_id == self.expected:
            return Place.NEW
        if message_id == self.expected - 1 and self.response:
            return Place.REPEATED
        return Place.OUTSIDE

    def respond(self, datagrams: tuple[bytes, ...]) -> None:
        """The expected request was worked on; this is what answers it and its repetitions."""
        self.response = datagrams
        self.fragments = None
        self.expected += 1
