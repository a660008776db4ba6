"""The names are closed, complete and agree with each other."""

from __future__ import annotations

from ipsec_api import features
from ipsec_api.algorithms import (
    DEFAULT_ENCRYPTION,
    DEFAULT_GROUPS,
    DEFAULT_HASHES,
    ENCRYPTION,
    GROUPS,
    HASHES,
    AutoHash,
    DhGroup,
    EncryptionAlgorithm,
    HashAlgorithm,
    PfsGroup,
    insecure_names,
    is_aead,
)


def test_every_name_is_described() -> None:
    assert set(ENCRYPTION) == set(EncryptionAlgorithm)
    assert set(HASHES) == set(HashAlgorithm)
    assert set(GROUPS) == set(DhGroup)


def test_enums_that_repeat_each_other_agree() -> None:
    assert {*AutoHash} == {"auto", *HashAlgorithm}
    assert {*PfsGroup} == {"auto", "none", *DhGroup}


def test_code_points_are_unique() -> None:
    known = [c for name, c in ENCRYPTION.items() if name != "twofish"]
    assert len({(c.id, c.key_bits) for c in known}) == len(known)
    assert len({m.integrity_id for m in HASHES.values()}) == len(HASHES)
    assert len({m.prf_id for m in HASHES.values()}) == len(HASHES)
    assert len({g.id for g in GROUPS.values()}) == len(GROUPS)


def test_code_points_of_the_registry() -> None:
    """IANA, "Internet Key Exchange Version 2 (IKEv2) Parameters"."""
    assert ENCRYPTION[EncryptionAlgorithm.AES256_GCM].id == 20
    assert ENCRYPTION[EncryptionAlgorithm.AES128_CCM_8].id == 14
    assert ENCRYPTION[EncryptionAlgorithm.CHACHA20POLY1305].key_bits == 0
    assert (HASHES[HashAlgorithm.SHA384].integrity_id, HASHES[HashAlgorithm.SHA384].prf_id) == (
        13,
        6,
    )
    assert (HASHES[HashAlgorithm.AES_XCBC].integrity_id, HASHES[HashAlgorithm.AES_XCBC].prf_id) == (
        5,
        4,
    )
    assert GROUPS[DhGroup.X25519].id == 31
    assert GROUPS[DhGroup.BRAINPOOL512].id == 30


def test_aead() -> None:
    aead = {str(a) for a in EncryptionAlgorithm if is_aead(a)}
    assert {a for a in EncryptionAlgorithm if "gcm" in a or "ccm" in a or "poly" in a} == aead


def test_defaults_are_safe_and_built() -> None:
    defaults = {*DEFAULT_ENCRYPTION, *DEFAULT_HASHES, *DEFAULT_GROUPS}
    assert not defaults & insecure_names()
    assert not defaults & features.ALGORITHMS


def test_insecure_names_are_those_of_the_design() -> None:
    assert insecure_names() == {
        "3des",
        "des",
        "blowfish",
        "null",
        "md5",
        "sha1",
        "modp768",
        "modp1024",
        "modp1536",
        "ec2n155",
        "ec2n185",
    }
