"""Two charons against each other, driven over their control sockets: the measure of our figures.

Set up for the most it can do: no logging, no denial-of-service checks, a large SA table, 32
threads, and one connection that may be up any number of times (``unique = never``), so that no
configuration is searched. ESP, where there is a child, is its own userspace one (plugin
kernel-libipsec).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.bench_vici import Message, Vici, ViciError
from ipsec_lab.netns import LabError, end_process
from ipsec_lab.topology import Topology

CHARON: Final = Path("/usr/lib/ipsec/charon")
PSK: Final = "a secret of the benchmark only"
NAME: Final = "bench"

_CONF: Final = """\
charon {
  threads = 32
  dos_protection = no
  ikesa_table_size = 4096
  ikesa_table_segments = 64
  reuse_ikesa = no
  filelog { }
  syslog { daemon { default = -1 } auth { default = -1 } }
  plugins {
    include /etc/strongswan.d/charon/*.conf
    vici { socket = unix://%(socket)s }
    kernel-libipsec { load = yes }
    bypass-lan { load = no }
  }
}
"""


def available() -> str | None:
    """None if charon can be measured here; else what is missing, in one line."""
    if not CHARON.exists():
        return "no charon: package strongswan-charon"
    plugin = CHARON.parent / "plugins" / "libstrongswan-kernel-libipsec.so"
    return None if plugin.exists() else "no kernel-libipsec: package libcharon-extra-plugins"


def version() -> str:
    """charon's version, such as ``5.9.8``."""
    if shutil.which("swanctl") is None:
        return "unknown"
    text = subprocess.run(["swanctl", "--version"], capture_output=True, text=True, check=False)
    return text.stdout.split()[-1] if text.stdout.split() else "unknown"


class CharonPair:
    """charon at both sites of a topology; ``folder`` takes configurations and sockets.

    ``proposal`` is the IKE proposal in strongSwan's notation. Site a initiates, each IKE SA with
    one CHILD_SA or, without ``child``, with none (RFC 6023).
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
        self._topology = topology
        self._folder = folder
        self._child = child
        self._proposal = proposal
        self._esp = esp
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name in ("a", "b"):
                self._start(name)
            for name, other in (("a", "b"), ("b", "a")):
                self._load(name, other)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End both daemons."""
        for process in self._processes.values():
            end_process(process)
        self._processes.clear()

    def usage(self, name: str) -> Usage:
        """What the charon of site ``a`` or ``b`` has used."""
        return usage(self._processes[name].pid)

    def initiate(self, count: int, *, parallel: int) -> float:
        """Set up ``count`` more IKE SAs from site a, ``parallel`` at a time; the seconds it took.

        Raises ViciError at the first that fails.
        """
        what = {"child": NAME} if self._child else {"ike": NAME}
        message: Message = {**what, "timeout": "20000", "loglevel": "-1"}
        left = iter(range(count))
        lock = threading.Lock()

        def one_of_them() -> None:
            with self.vici("a") as vici:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    vici.request("initiate", message)

        start = time.perf_counter()
        with ThreadPoolExecutor(parallel) as pool:
            for done in [pool.submit(one_of_them) for _ in range(parallel)]:
                done.result()
        return time.perf_counter() - start

    def one_tunnel(self, count: int) -> list[float]:
        """Up and down again ``count`` times: the seconds from `initiate` to the child's SAs."""
        times = []
        with self.vici("a") as vici:
            for _ in range(count):
                start = time.perf_counter()
                vici.request("initiate", {"child": NAME, "timeout": "20000", "loglevel": "-1"})
                times.append(time.perf_counter() - start)
                vici.request("terminate", {"ike": NAME, "timeout": "20000", "loglevel": "-1"})
        return times

    def vici(self, name: str) -> Vici:
        """A new connection to the control socket of site ``a`` or ``b``."""
        return Vici(self._socket(name))

    def _socket(self, name: str) -> Path:
        return self._folder / f"charon-{name}.vici"

    def _start(self, name: str) -> None:
        conf = self._folder / f"charon-{name}.conf"
        conf.write_text(_CONF % {"socket": self._socket(name)})
        # Each has a /run of its own, for its pid file.
        script = 'mount -t tmpfs tmpfs /run && exec "$0"'
        process = self._topology.gateway(name).popen(
            ["unshare", "--mount", "sh", "-c", script, str(CHARON)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "STRONGSWAN_CONF": str(conf)},
        )
        self._processes[name] = process
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise LabError(f"charon ended at start: exit {process.returncode}")
            try:
                with self.vici(name) as vici:
                    vici.request("version", {})
                    return
            except (OSError, ViciError):
                time.sleep(0.05)
        raise LabError("charon did not open its control socket within 20 s")

    def _load(self, name: str, other: str) -> None:
        own, far = self._topology.site(name), self._topology.site(other)
        with self.vici(name) as vici:
            vici.request("load-shared", {"id": "psk", "type": "IKE", "data": PSK})
            connection: Message = {
                "version": "2",
                "local_addrs": [own.wan_address()],
                "remote_addrs": [far.wan_address()],
                "proposals": [self._proposal],
                "unique": "never",
                "mobike": "no",
                "childless": "allow" if self._child else "force",
                "local": {"auth": "psk", "id": f"{name}.example"},
                "remote": {"auth": "psk", "id": f"{other}.example"},
                "children": {
                    NAME: {
                        "local_ts": [own.lans[0]],
                        "remote_ts": [far.lans[0]],
                        "esp_proposals": [self._esp],
                        "mode": "tunnel",
                    }
                },
            }
            vici.request("load-conn", {NAME: connection})
