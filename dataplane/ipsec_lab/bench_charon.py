"""Two charons against each other, driven over their control sockets: the measure of our figures.

Set up for the most they can do: no logging, no denial-of-service checks, a large SA table, 32
threads, and one connection that may be up any number of times (``unique = never``), so that no
configuration is searched. ESP, where there is a child, is their own userspace one, the plugin
kernel-libipsec.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from ipsec_lab import strongswan
from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.netns import missing_programs
from ipsec_lab.strongswan import Charon, CharonSettings, Child, Connection
from ipsec_lab.topology import Topology
from ipsec_lab.vici import Section, Vici

PSK: Final = b"a secret of the benchmark only"

_NAME: Final = "bench"
#: More than 32 parallel blocking initiations stall charon 5.9.8: each holds one of its threads.
_SETTINGS: Final = CharonSettings(
    threads=32,
    log_level=-1,
    extra={
        "dos_protection": "no",
        "ikesa_table_size": 4096,
        "ikesa_table_segments": 64,
        "reuse_ikesa": "no",
    },
)


def version() -> str:
    """strongSwan's version, such as ``5.9.8``, or ``not installed``."""
    if missing_programs("swanctl") or strongswan.missing():
        return "not installed"
    # The version is in the title of the help; --version alone does not say it.
    said = subprocess.run(["swanctl", "--help"], capture_output=True, text=True, check=False)
    found = re.search(r"strongSwan (\S+)", said.stdout + said.stderr)
    return found[1] if found else "of unknown version"


class CharonPair:
    """charon at both sites of a topology; ``folder`` takes configurations and sockets.

    ``proposal`` is the IKE proposal in strongSwan's notation. Site a initiates, each IKE SA with
    one CHILD_SA or, without ``child``, with none (RFC 6023). Raises LabError.
    """

    def __init__(
        self,
        topology: Topology,
        folder: Path,
        *,
        child: bool = True,
        proposal: str = "aes128gcm16-prfsha256-x25519",
        esp: str = "aes128gcm16",
    ) -> None:
        self._child = child
        self._charons: dict[str, Charon] = {}
        for name, other in (("a", "b"), ("b", "a")):
            own, far = topology.site(name), topology.site(other)
            directory = folder / f"charon-{name}"
            directory.mkdir()
            charon = Charon(topology, topology.gateway(name), directory, _SETTINGS)
            self._charons[name] = charon
            charon.start()
            charon.load(
                Connection(
                    name=_NAME,
                    psk=PSK,
                    local_addrs=(own.wan_address(),),
                    remote_addrs=(far.wan_address(),),
                    local_id=f"{name}.example",
                    remote_id=f"{other}.example",
                    proposals=(proposal,),
                    childless="allow" if child else "force",
                    unique="never",
                    rekey_time=8 * 3600,
                    children=(
                        Child(
                            name=_NAME,
                            local_ts=(own.lans[0],),
                            remote_ts=(far.lans[0],),
                            esp_proposals=(esp,),
                            rekey_time=1800,
                        ),
                    ),
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for charon in self._charons.values():
            charon.kill()  # to delete 1000 SAs in an orderly way takes long

    def usage(self, name: str) -> Usage:
        """What the charon of site ``a`` or ``b`` has used."""
        return usage(self._charons[name].pid)

    def initiate(self, count: int, *, parallel: int) -> float:
        """Set up ``count`` more IKE SAs from site a, ``parallel`` at a time; the seconds it took.

        Raises ViciError at the first that fails.
        """
        left = iter(range(count))
        lock = threading.Lock()

        def one_after_the_other(vici: Vici) -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                vici.request("initiate", self._initiate)

        with ExitStack() as stack:
            connections = [stack.enter_context(self._vici()) for _ in range(parallel)]
            with ThreadPoolExecutor(parallel) as pool:
                start = time.perf_counter()
                for done in [pool.submit(one_after_the_other, vici) for vici in connections]:
                    done.result()
                return time.perf_counter() - start

    def one_tunnel(self, count: int) -> list[float]:
        """Up and down again ``count`` times: the seconds from `initiate` to the child's SAs."""
        times = []
        with self._vici() as vici:
            for _ in range(count):
                start = time.perf_counter()
                vici.request("initiate", self._initiate)
                times.append(time.perf_counter() - start)
                vici.request("terminate", {"ike": _NAME, "timeout": "20000", "loglevel": "-1"})
        return times

    @property
    def _initiate(self) -> Section:
        what = {"child": _NAME} if self._child else {"ike": _NAME}
        return {**what, "timeout": "20000", "loglevel": "-1"}

    def _vici(self) -> Vici:
        vici = self._charons["a"].vici()
        vici.request("version")  # so that it is accepted before the next one connects
        return vici
