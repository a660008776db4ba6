"""Powers in the MODP groups, by the crypto library or, where it will not, by ``pow``.

The library has deprecated finite-field Diffie-Hellman and will remove it; and for the two primes
that OpenSSL does not know (768 and 1024 bits) it tests primality each time, for tens of
milliseconds. So the library is used for the primes it knows, if a first trial of it gives the right
number, and ``pow`` for the rest. ``pow`` is slower by 3 to 8 times and its time depends on the
exponent; that is tolerable because each exponent is used for one exchange.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Final

from ipsec_ike.crypto.modp_primes import PRIMES
from ipsec_ike.numbers import Group

#: (group, base, exponent) -> base**exponent mod p. 1 < base < p-1.
Power = Callable[[int, int, int], int]

#: Octets of a private exponent. More bits than twice the strength of the group (NIST SP 800-56A
#: rev. 3 appendix D has 112, 128, 152, 176 and 200 bits from MODP_2048 on): the cost of a discrete
#: logarithm in an interval is the root of its size. A longer one buys nothing with safe primes.
EXPONENT_OCTETS: Final[dict[int, int]] = {
    Group.MODP_768: 20,
    Group.MODP_1024: 20,
    Group.MODP_1536: 25,
    Group.MODP_2048: 29,
    Group.MODP_3072: 35,
    Group.MODP_4096: 41,
    Group.MODP_6144: 47,
    Group.MODP_8192: 51,
}

#: Primes that the library does not recognise as safe.
_UNKNOWN_TO_LIBRARY: Final = frozenset({Group.MODP_768, Group.MODP_1024})


def plain_power(group: int, base: int, exponent: int) -> int:
    """base**exponent modulo the group's prime, in Python."""
    return pow(base, exponent, PRIMES[group])


@cache
def library_power() -> Power | None:
    """The same by the library, or None if it no longer has finite-field Diffie-Hellman.

    A key with this exponent, exchanged with the base as public value, gives the power; this is also
    the way to a public value (base 2) for an exponent of our own: the library has no call for that.
    """
    try:
        with warnings.catch_warnings():
            # The names warn on access; what stands in for them is above, and tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            from cryptography.hazmat.primitives.asymmetric import dh

            parameter_numbers = dh.DHParameterNumbers
            public_numbers = dh.DHPublicNumbers
            private_numbers = dh.DHPrivateNumbers
    except (ImportError, AttributeError):
        return None

    def power(group: int, base: int, exponent: int) -> int:
        parameters = parameter_numbers(PRIMES[group], 2)
        public = public_numbers(base, parameters)
        # The public value belonging to the exponent is not looked at in an exchange.
        private = private_numbers(exponent, public).private_key()
        return int.from_bytes(private.exchange(public.public_key()), "big")

    try:
        works = power(Group.MODP_2048, 3, 65537) == plain_power(Group.MODP_2048, 3, 65537)
    except ValueError:
        return None
    return power if works else None


def power_for(group: int) -> Power:
    """The best implementation for a group."""
    library = None if group in _UNKNOWN_TO_LIBRARY else library_power()
    return plain_power if library is None else library
