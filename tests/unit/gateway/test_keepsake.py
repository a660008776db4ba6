"""Documents that are in force go to the next life of the gateway, and no others."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ipsec_api.documents import Documents
from ipsec_gateway import keepsake, privatefiles
from ipsec_gateway.handover import Handover
from ipsec_gateway.lastgood import InForce, Key, LastGood
from ipsec_gateway.pump import Pump
from ipsec_ike.engine import Engine

PEER = Key("IPsecPeer", "default", "hq")


def next_life(memory: LastGood) -> LastGood:
    after = LastGood()
    after.remember(keepsake.load(keepsake.dump(memory.in_force())))
    return after


def test_what_became_bad_while_nobody_looked_stays_in_force(make) -> None:
    memory = LastGood()
    before = memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    broken = make.peer(remoteSubnets=["10.3.0.0/16"], address="not an address!")
    after = next_life(memory).take(make.files(a=[make.secret()], b=[broken]))
    assert after.tunnels == before.tunnels
    assert after.held == {PEER}
    assert after.errors
    # And in the life after that.
    later = next_life(memory)
    later.take(make.files(a=[make.secret()], b=[broken]))
    found = next_life(later).take(make.files(a=[make.secret()], b="{"))
    assert found.tunnels == before.tunnels


def test_what_is_good_or_gone_is_taken_as_it_is(make) -> None:
    memory = LastGood()
    memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    other = make.files(a=[make.secret()], b=[make.peer(remoteSubnets=["10.3.0.0/16"])])
    assert next_life(memory).take(other) == LastGood().take(other)
    gone = make.files(a=[make.secret()], c="{")
    assert next_life(memory).take(gone) == LastGood().take(gone)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'["x", {}]', b'["kube-ipsec documents 1", 7]'])
def test_what_cannot_be_read_is_nothing(data: bytes) -> None:
    assert keepsake.load(data) == {}


def test_what_this_version_does_not_accept_is_left_out(make) -> None:
    memory = LastGood()
    memory.take(make.files(a=[make.secret()], b=[make.peer()]))
    data = keepsake.dump(memory.in_force()).replace(b'"address"', b'"adress"')
    assert [type(each).__name__ for d in keepsake.load(data).values() for each in d.objects] == [
        "Secret"
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory on tmpfs."""
    base = Path(f"/dev/shm/kube-ipsec-keepsake-{os.getpid()}")
    if privatefiles.file_system(base.parent) not in privatefiles.MEMORY:
        pytest.skip("no tmpfs at /dev/shm")
    base.mkdir()
    yield base / "state"
    shutil.rmtree(base)


def live(folder: Path, files: Mapping[str, Documents], *, forget: bool = False) -> InForce:
    """A life of a gateway that takes these files and ends."""

    async def work() -> InForce:
        loop = asyncio.get_running_loop()
        nothing: Any = lambda _: None  # noqa: E731  # a function that has no name of its own
        it = Handover(folder, Pump(Engine(rng=os.urandom), nothing, loop), loop)
        it.open()
        found = await it.take(LastGood(), files)
        it.forget() if forget else it.close()
        return found

    return asyncio.run(work())


def test_it_is_kept_with_the_records_for_root_alone(make, folder: Path) -> None:
    before = live(folder, make.files(a=[make.secret()], b=[make.peer()]))
    path = folder / "documents"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert live(folder, make.files(a=[make.secret()], b="{")).tunnels == before.tunnels
    live(folder, make.files(a=[make.secret()], b="{"), forget=True)
    assert not folder.exists()
    assert live(folder, make.files(a=[make.secret()], b="{")).tunnels == ()


def test_records_that_are_refused_take_it_with_them(make, folder: Path) -> None:
    """Such as after lives that ended early because of them."""
    live(folder, make.files(a=[make.secret()], b=[make.peer()]))
    (folder / "journal").write_bytes(b"?")
    assert live(folder, make.files(a=[make.secret()], b="{")).tunnels == ()
