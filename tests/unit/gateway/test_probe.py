"""The choice of the data plane, and what the command line says where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ipsec_gateway import cli
from ipsec_gateway.ipsec.abilities import USERSPACE, Abilities
from ipsec_gateway.ipsec.base import DataplaneError
from ipsec_gateway.options import Options
from ipsec_gateway.probe import Kernel
from ipsec_ike.numbers import Encr, Integ, TransformType
from ipsec_ike.proposal import Transform

CAN = Abilities(
    dataplane="xfrm",
    encryption=frozenset({Transform(TransformType.ENCR, Encr.AES_GCM_16, 256)}),
    esp_integrity=frozenset({Integ.HMAC_SHA2_256_128}),
)
GOOD = Kernel(
    abilities=CAN,
    esp=frozenset({4, 6}),
    ah=frozenset({4}),
    directions=False,
    encapsulation=True,
    interfaces=False,
    lacks="",
)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options of the gateways that would have run."""
    found: list[Options] = []

    async def run(options: Options, *_: object) -> None:
        found.append(options)

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli, "_lacking", lambda *, device: None)
    return found


def start(*words: str, folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(cli.gateway, ["--manifests", str(folder), *words])
    return done.exit_code, done.output


def test_a_kernel_with_esp_is_used(
    chosen: list[Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "probe", lambda: GOOD)
    for words in ((), ("--dataplane", "xfrm")):
        assert start(*words, folder=tmp_path)[0] == 0
        options = chosen.pop()
        assert (options.kernel, options.device, options.abilities) == (True, None, CAN)


def test_it_is_not_asked_if_it_is_not_wanted(
    chosen: list[Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "probe", lambda: pytest.fail("asked"))
    assert start("--dataplane", "userspace", folder=tmp_path)[0] == 0
    (options,) = chosen
    assert (options.kernel, options.device, options.abilities) == (False, cli.DEVICE, USERSPACE)


def test_without_esp_in_the_kernel(
    chosen: list[Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing() -> Kernel:
        raise DataplaneError("this kernel has no XFRM (module xfrm_user)")

    monkeypatch.setattr(cli, "probe", nothing)
    assert start(folder=tmp_path)[0] == 0
    assert chosen.pop().abilities == USERSPACE
    code, text = start("--dataplane", "xfrm", folder=tmp_path)
    assert (code, chosen) == (3, [])
    assert text.splitlines()[-1] == (
        "kube-ipsec gateway: --dataplane xfrm: this kernel has no XFRM (module xfrm_user); or use "
        "--dataplane userspace"
    )


def test_what_the_log_says_about_a_kernel() -> None:
    assert str(GOOD) == ("ESP for IPv4 and 6: rfc4106(gcm(aes)); ESN; AH for IPv4; ESP in UDP")
