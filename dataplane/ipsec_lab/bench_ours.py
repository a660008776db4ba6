"""Two of our daemons against each other, with the orders of ``bench_charon.CharonPair``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

from ipsec_lab.bench_process import Usage, usage
from ipsec_lab.netns import LabError, end_process
from ipsec_lab.topology import Topology


class OurPair:
    """``ipsec_lab.bench_daemon`` at both sites of a topology; ``folder`` takes their logs.

    Site a initiates, each IKE SA with one CHILD_SA or, without ``child``, with none (RFC 6023).
    Like charon, the responder has one connection for all; the initiator has ``peers`` of them,
    where charon has one that is up many times. Raises LabError.
    """

    def __init__(
        self, topology: Topology, folder: Path, *, child: bool = True, peers: int = 1000
    ) -> None:
        self._folder: Final = folder
        self._processes: Final[dict[str, subprocess.Popen[bytes]]] = {}
        setup = {
            "peers": peers,
            "child": child,
            "addresses": {name: topology.site(name).wan_address() for name in ("a", "b")},
        }
        try:
            for name in ("b", "a"):
                argument = json.dumps({**setup, "side": name})
                with self._log(name).open("wb") as log:
                    self._processes[name] = topology.gateway(name).popen(
                        [sys.executable, "-m", "ipsec_lab.bench_daemon", argument],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=os.environ,
                    )
                self._answer(name)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def usage(self, name: str) -> Usage:
        """What the daemon of site ``a`` or ``b`` and its packet processes have used."""
        return usage(self._processes[name].pid)

    def initiate(self, count: int, *, parallel: int) -> float:
        """Set up ``count`` more IKE SAs from site a, ``parallel`` at a time; the seconds."""
        return float(self._order(do="initiate", count=count, parallel=parallel)["seconds"])

    def one_tunnel(self, count: int) -> list[float]:
        """Up and down again ``count`` times: the seconds from the order to the child's SAs."""
        return [float(each) for each in self._order(do="tunnel", count=count)["times"]]

    def _order(self, **order: object) -> dict[str, Any]:
        stdin = self._processes["a"].stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        return self._answer("a")

    def _answer(self, name: str) -> dict[str, Any]:
        stdout = self._processes[name].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            said = self._log(name).read_text(errors="replace").strip().splitlines()
            raise LabError(f"our daemon at site {name} ended: {said[-1] if said else 'no output'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _log(self, name: str) -> Path:
        return self._folder / f"ours-{name}.log"

    def _end(self) -> None:
        for process in self._processes.values():
            end_process(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()
