"""Key exchange: the primes, the refusals, the fallback, replay."""

import hashlib
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import asymmetric
from cryptography.hazmat.primitives.asymmetric import ec

from ipsec_ike.crypto import modp
from ipsec_ike.crypto.groups import _CURVES, generate, is_supported, public_length
from ipsec_ike.crypto.modp import EXPONENT_OCTETS, library_power, plain_power, power_for
from ipsec_ike.crypto.modp_primes import PRIMES
from ipsec_ike.errors import InvalidSyntax, LocalMisuse
from ipsec_ike.numbers import Group

MODP = sorted(PRIMES)
CURVES = sorted(_CURVES)
#: Octets of a private value that is taken as it is.
RAW: dict[int, int] = {Group.CURVE25519: 32, Group.CURVE448: 56}
ALL = [*MODP, *CURVES, *RAW]


def each(groups: Iterable[int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("group", groups, ids=lambda group: Group(group).name)


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def pi(bits: int) -> int:
    """floor(2**bits * pi) by Machin's formula, in integers."""
    guard = 64
    one = 1 << (bits + guard)

    def arctan_of_inverse(x: int) -> int:
        total = power = one // x
        for k in itertools.count(3, 2):
            power //= x * x
            if not power:
                return total
            total += (-1) ** (k // 2) * (power // k)
        raise AssertionError

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> guard


def test_pi() -> None:
    # In hexadecimal pi is 3.243F6A8885A308D313198A2E03707344A4...
    assert pi(128) == 0x3243F6A8885A308D313198A2E03707344


def test_primes_are_those_of_the_formula() -> None:
    path = Path(__file__).parents[2] / "vectors" / "group_modp.json"
    assert path.stem == "group_modp"
    cases = json.loads(path.read_text())["cases"]
    assert {Group[case["group"]] for case in cases} == set(PRIMES)
    for case in cases:
        n = case["bits"]
        want = 2**n - 2 ** (n - 64) - 1 + 2**64 * (pi(n - 130) + case["c"])
        assert PRIMES[Group[case["group"]]] == want, case["name"]


@each(ALL)
def test_both_ends_agree(group: int) -> None:
    ours, theirs = generate(group, seeded(1)), generate(group, seeded(2))
    assert ours.group == group
    assert len(ours.public) == len(theirs.public) == public_length(group)
    assert ours.public != theirs.public
    secret = ours.shared(theirs.public)
    assert secret == theirs.shared(ours.public)
    # x alone for curves with two coordinates; else as long as the public value.
    assert len(secret) == public_length(group) // (2 if group in CURVES else 1)


@each(ALL)
def test_the_same_randomness_gives_the_same_exchange(group: int) -> None:
    assert generate(group, seeded(7)).public == generate(group, seeded(7)).public
    calls: list[int] = []

    def counting(size: int) -> bytes:
        calls.append(size)
        return hashlib.shake_256(b"x").digest(size)

    generate(group, counting)
    # Curves draw 64 bits more than the scalar has, so that the reduction does not show.
    curve_size = _CURVES[group][1] + 8 if group in CURVES else 0
    assert calls == [curve_size or RAW.get(group) or EXPONENT_OCTETS[group]]


@each(ALL)
def test_a_public_value_of_another_length_is_refused(group: int) -> None:
    ours = generate(group, seeded(1))
    good = generate(group, seeded(2)).public
    for bad in (b"", good[:-1], good + b"\0", b"\0" + good, b"\x04" + good):
        with pytest.raises(InvalidSyntax, match=Group(group).name):
            ours.shared(bad)


@pytest.mark.parametrize("power", ["library", "plain"])
@each(MODP)
def test_degenerate_modp_values_are_refused(
    group: int, power: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if power == "plain":
        monkeypatch.setattr("ipsec_ike.crypto.groups.power_for", lambda _: plain_power)
    ours = generate(group, seeded(1))
    p, size = PRIMES[group], public_length(group)
    for bad in (0, 1, p - 1, p, p + 1, 256**size - 1):
        with pytest.raises(InvalidSyntax):
            ours.shared(bad.to_bytes(size, "big"))
    for good in (2, p - 2):
        assert len(ours.shared(good.to_bytes(size, "big"))) == size


@each(CURVES)
def test_points_off_the_curve_are_refused(group: int) -> None:
    ours = generate(group, seeded(1))
    _curve, size, _ = _CURVES[group]
    good = bytearray(generate(group, seeded(2)).public)
    wrong_y, swapped = bytearray(good), good[size:] + good[:size]
    wrong_y[-1] ^= 1
    beyond_p = b"\xff" * (2 * size)
    for bad in (bytes(2 * size), bytes(wrong_y), bytes(swapped), beyond_p):
        with pytest.raises(InvalidSyntax, match="not a point"):
            ours.shared(bad)


#: Every point of small order of Curve25519 and their non-canonical forms (RFC 7748 6.1, 7), and of
#: Curve448 (0, 1 and -1): the shared secret would be all zero.
LOW_ORDER = {
    Group.CURVE25519: [
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
    ],
    Group.CURVE448: [0, 1, 2**448 - 2**224 - 2, 2**448 - 2**224 - 1, 2**448 - 2**224],
}


@each(LOW_ORDER)
def test_points_of_low_order_are_refused(group: Group) -> None:
    ours = generate(group, seeded(1))
    for u in LOW_ORDER[group]:
        with pytest.raises(InvalidSyntax, match="low order"):
            ours.shared(u.to_bytes(public_length(group), "little"))


@each(CURVES)
def test_every_private_value_of_a_curve_is_in_range(group: int) -> None:
    """The extremes of the randomness give scalars from 1 to order - 1 (FIPS 186-5 A.2.1)."""
    curve, size, order = _CURVES[group]
    with pytest.raises(ValueError, match="out of range"):
        ec.derive_private_key(order, curve)
    base = generate(group, bytes).public
    last = generate(group, lambda n: (order - 2).to_bytes(n, "big")).public
    # (order - 1) * G = -G: the same x, the other y.
    assert (base[:size], base[size:] != last[size:]) == (last[:size], True)
    generate(group, lambda n: b"\xff" * n)


@each(MODP)
def test_library_and_python_give_the_same_powers(group: int) -> None:
    library = library_power()
    assert library is not None, "cryptography has dropped FFDH: see crypto/modp.py"
    exponent = int.from_bytes(seeded(3)(EXPONENT_OCTETS[group]), "big")
    base = pow(3, 12345, PRIMES[group])
    assert library(group, base, exponent) == plain_power(group, base, exponent)
    assert library(group, 2, exponent) == plain_power(group, 2, exponent)


@each(MODP)
def test_without_the_library_nothing_changes_but_the_time(
    group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library = generate(group, seeded(5))
    peer = generate(group, seeded(6)).public
    monkeypatch.setattr("ipsec_ike.crypto.groups.power_for", lambda _: plain_power)
    without = generate(group, seeded(5))
    assert without.public == with_library.public
    assert without.shared(peer) == with_library.shared(peer)


def test_which_implementation_is_used() -> None:
    library = library_power()
    assert power_for(Group.MODP_768) is power_for(Group.MODP_1024) is plain_power
    assert power_for(Group.MODP_1536) is power_for(Group.MODP_8192) is library


@pytest.fixture
def fresh_library_power() -> Iterator[None]:
    modp.library_power.cache_clear()
    yield
    modp.library_power.cache_clear()


@pytest.mark.usefixtures("fresh_library_power")
def test_a_library_without_ffdh_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(asymmetric, "dh", raising=False)
    monkeypatch.setitem(sys.modules, f"{asymmetric.__name__}.dh", None)
    assert modp.library_power() is None
    assert power_for(Group.MODP_2048) is plain_power


@pytest.mark.usefixtures("fresh_library_power")
def test_a_library_that_calculates_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modp, "plain_power", lambda *_: 4)
    assert modp.library_power() is None


@each(MODP)
def test_exponents_are_long_enough_and_of_one_length(group: int) -> None:
    # NIST SP 800-56A rev. 3 table 26; RFC 3526 section 8 for 1536 and, extrapolated, below.
    strength = {
        Group.MODP_768: 64,
        Group.MODP_1024: 76,
        Group.MODP_1536: 90,
        Group.MODP_2048: 112,
        Group.MODP_3072: 128,
        Group.MODP_4096: 152,
        Group.MODP_6144: 176,
        Group.MODP_8192: 200,
    }
    exponent = generate(group, bytes)._exponent  # type: ignore[attr-defined]  # what is tested
    assert exponent.bit_length() == 8 * EXPONENT_OCTETS[group] > 2 * strength[Group(group)]


def test_unknown_groups() -> None:
    for group in (Group.NONE, 3, 4, 22, 23, 24, 25, 26, 27, 36, 1024):
        assert not is_supported(group)
        with pytest.raises(LocalMisuse):
            generate(group, seeded(1))
        with pytest.raises(LocalMisuse):
            public_length(group)
    assert all(map(is_supported, ALL))


@each(ALL)
def test_no_secret_in_text(group: int) -> None:
    ours = generate(group, seeded(1))
    assert repr(ours) == str(ours) == f"<key exchange {Group(group).name}>"
    with pytest.raises(InvalidSyntax) as refusal:
        ours.shared(b"\x01")
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None
