"""How many strangers are being talked to: half-open IKE SAs in total and by address."""

from __future__ import annotations

from ipsec_ike.config import Limits


class HalfOpen:
    """Counts of the IKE SAs that answered IKE_SA_INIT and are not authenticated yet."""

    __slots__ = ("_by_address", "_limits", "total")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_address: dict[str, int] = {}
        self.total = 0

    def needs_cookie(self, address: str) -> bool:
        """Whether a stranger must return a COOKIE first (RFC 7296 2.6).

        Of what one address may have, half is for those who receive there: who only pretends to
        send from the address of a peer cannot lock that peer out.
        """
        limits = self._limits
        known = self._by_address.get(address, 0)
        return self.total >= limits.cookie_threshold or 2 * known >= limits.half_open_per_address

    def refuses(self, address: str) -> str | None:
        """Why no half-open SA may be made for this address, as a counter name, or None."""
        if self.total >= self._limits.half_open_max:
            return "half_open_max"
        if self._by_address.get(address, 0) >= self._limits.half_open_per_address:
            return "half_open_per_address"
        return None

    def add(self, address: str) -> None:
        """One more; ``remove`` must follow with the same address."""
        self.total += 1
        self._by_address[address] = self._by_address.get(address, 0) + 1

    def remove(self, address: str) -> None:
        """It was authenticated, or it is gone."""
        self.total -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]
