"""``make bench BENCH=kernel``: our gateway on the kernel's ESP beside SAs and policies set by hand.

It runs in the guest (``ipsec_lab.guest``), emulated and with one processor: nothing but the ratios
means anything outside of it. For these the guest's clock counts instructions, 2 ns for each: a
ratio is one of instructions, and another run finds the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ipsec_gateway.intent import Intent
from ipsec_gateway.ipsec.base import PolicyAction, PolicyDirection, PolicyId, PolicySpec
from ipsec_gateway.ipsec.xfrm import XfrmBackend
from ipsec_gateway.marks import REQID_BASE
from ipsec_gateway.tools import ToolError
from ipsec_ike.actions import SaSpec
from ipsec_ike.config import Mode
from ipsec_ike.identifiers import Direction, SaId
from ipsec_ike.inputs import Endpoint
from ipsec_ike.numbers import Encr, Protocol, TransformType
from ipsec_ike.proposal import Transform
from ipsec_ike.secret import Secret
from ipsec_ike.selectors import TrafficSelector
from ipsec_lab import guest, guest_inside, manifests
from ipsec_lab.bench_pair import Settings
from ipsec_lab.bench_report import Row
from ipsec_lab.guest_forks import ForkClient
from ipsec_lab.kernel_rig import SlowGateway
from ipsec_lab.netns import LabError, Namespace
from ipsec_lab.spd_rig import intent_of, spd_rig
from ipsec_lab.topology import Topology
from ipsec_lab.traffic import ping_until

EMULATED: Final = "in an emulated machine with one processor: only the ratio counts"
#: Tasks in the guest.
RATIOS: Final = "ipsec_lab.bench_kernel:ratios"
DURATIONS: Final = "ipsec_lab.bench_kernel:durations"
_PSK: Final = b"secret of the benchmark"
_KEY: Final = bytes(range(20))
_OUTER: Final = ("192.0.2.1", "192.0.2.2")


def kernel(settings: Settings) -> list[Row]:
    """Throughput, programming, start-up and adoption, nftables: ours and by hand."""
    return [
        *in_guest(RATIOS, settings, counted=True),
        *in_guest(DURATIONS, settings),
    ]


def in_guest(task: str, settings: Settings, *, counted: bool = False) -> list[Row]:
    """The rows that a task in the guest says; ``counted`` as of the guest. Raises LabError where
    there is none."""
    quick = settings.seconds < 2
    arguments = {"quick": quick, "runs": settings.runs, "seconds": min(settings.seconds, 5.0)}
    rows = []
    with guest.Guest(patience=1800, counted=counted) as machine:
        machine.start(task, arguments)
        for line in machine.lines():
            if "row" in line:
                row = line["row"]
                rows.append(Row(**row | {k: tuple(row[k]) for k in ("ours", "theirs")}))
            if "problem" in line:
                raise LabError(f"in the guest: {line['problem']}")
    return rows


def say(row: Row) -> None:
    """Hand a row to the host."""
    guest_inside.say({"row": asdict(row)})


def ratios(arguments: Mapping[str, Any], forks: ForkClient) -> int:
    """The task in the guest of what has something beside it."""
    count = 32 if arguments["quick"] else 1000
    with _telling(forks):
        rest = 0.0 if arguments["quick"] else 20.0
        _throughput(float(arguments["seconds"]), int(arguments["runs"]), rest)
        _programming(count, int(arguments["runs"]))
    return 0


def durations(arguments: Mapping[str, Any], forks: ForkClient) -> int:
    """The task in the guest of what takes its time."""
    quick = bool(arguments["quick"])
    with _telling(forks):
        _load_modules()
        _start_up(10 if quick else 1000)
        _nftables(50 if quick else 5000)
    return 0


@contextlib.contextmanager
def _telling(forks: ForkClient) -> Iterator[None]:
    guest_inside.FORKS = forks
    try:
        yield
    except Exception as exc:  # the host has to hear of whatever went wrong
        guest_inside.say({"problem": f"{type(exc).__name__}: {exc}"})
        raise


def _throughput(seconds: float, runs: int, rest: float) -> None:
    """TCP from LAN to LAN, in turns: through our two gateways, and through SAs set by hand. The
    gateways share the processor, and have ``rest`` seconds to end what a start takes."""
    folder = Path("/tmp/bench")  # noqa: S108  # of this machine, which nobody else uses
    folder.mkdir()
    ours, theirs = [], []
    with Topology() as top, Topology() as bare:
        for site, other in (("a", "b"), ("b", "a")):
            _gateway(top, folder, site, other)
        ping_until(top.lan_a, top.b.host(), timeout=200)
        by_hand(bare)
        ping_until(bare.lan_a, bare.b.host(), timeout=60)
        time.sleep(rest)
        for _ in range(runs):
            ours.append(_iperf(top, seconds))
            theirs.append(_iperf(bare, seconds))
    say(
        Row(
            what="kernel: one TCP stream, AES-128-GCM",
            unit="Mbit/s",
            ours=tuple(ours),
            theirs=tuple(theirs),
            at_least=0.98,
            reference="ip xfrm by hand",
        )
    )


def _gateway(top: Topology, folder: Path, site: str, other: str) -> None:
    directory = folder / site
    directory.mkdir()
    gateway = SlowGateway(top, top.gateway(site), directory)
    local, remote = top.site(site), top.site(other)
    gateway.apply(
        manifests.secret("key", _PSK),
        manifests.policy(
            "lans",
            peer_name="other",
            selectors=[(local.lans[0], remote.lans[0])],
            proposal={"encAlgorithms": ["aes128-gcm"], "esn": False, "replayWindow": 32},
        ),
        manifests.peer(
            "other",
            address=remote.wan_address(),
            psk_from="key",
            localAddress=local.wan_address(),
            passive=site == "b",
        ),
    )
    gateway.start()


def by_hand(top: Topology, algorithms: str = "") -> None:
    """SAs and policies between the first LANs, with ``ip xfrm``."""
    algorithms = algorithms or f"aead rfc4106(gcm(aes)) 0x{_KEY.hex()} 128"
    outer = {"a": top.a.wan_address(), "b": top.b.wan_address()}
    for site, other in (("a", "b"), ("b", "a")):
        local, remote = top.site(site).lans[0], top.site(other).lans[0]
        here, there = outer[site], outer[other]
        lines = [
            f"xfrm state add src {outer[x]} dst {outer[y]} proto esp spi {spi} reqid 7 mode tunnel "
            f"replay-window 32 {algorithms}"
            for x, y, spi in (("a", "b", "0x1001"), ("b", "a", "0x1002"))
        ]
        end = "proto esp reqid 7 mode tunnel"
        lines += [
            f"xfrm policy add src {local} dst {remote} dir out tmpl src {here} dst {there} {end}",
            f"xfrm policy add src {remote} dst {local} dir in tmpl src {there} dst {here} {end}",
            f"xfrm policy add src {remote} dst {local} dir fwd tmpl src {there} dst {here} {end}",
        ]
        top.gateway(site).ip(*lines)


def _iperf(top: Topology, seconds: float) -> float:
    """Mbit/s of one TCP stream."""
    server = top.lan_b.popen(
        ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    argv = ("iperf3", "-J", "-t", f"{max(1, round(seconds))}", "-c", top.b.host())
    deadline = time.monotonic() + 60
    while True:
        said = json.loads(top.lan_a.run(*argv, check=False, timeout=seconds + 120))
        if "error" not in said:
            break
        if time.monotonic() > deadline:
            raise LabError(f"iperf3: {said['error']}")
        time.sleep(0.5)  # the server is not there yet
    server.wait(60)
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e6


def _programming(count: int, runs: int) -> None:
    """SAs and policies a second, one after the other as the engine asks for them."""
    figures: dict[str, tuple[list[float], list[float]]] = {"SAs": ([], []), "policies": ([], [])}
    inherited = []
    with _namespace("bench") as namespace:
        namespace.ip("link add wire type dummy", "address add 192.0.2.1/24 dev wire")
        namespace.ip("link set dev wire up")
        for _ in range(runs):
            sas, policies, adopted = namespace.call(lambda: asyncio.run(_program(count)))
            figures["SAs"][0].append(sas)
            figures["policies"][0].append(policies)
            inherited.append(adopted)
            for kind, lines in (("SAs", _sa_lines(count)), ("policies", _policy_lines(count))):
                start = time.monotonic()
                namespace.ip(*lines)
                figures[kind][1].append(len(lines) / (time.monotonic() - start))
            namespace.ip("xfrm state flush", "xfrm policy flush")
    for kind, (ours, theirs) in figures.items():
        say(
            Row(
                what=f"kernel: {kind} programmed ({count} tunnels)",
                unit="per second",
                ours=tuple(ours),
                theirs=tuple(theirs),
                reference="ip -batch",
            )
        )
    say(
        Row(
            what=f"kernel: back end adopts the SAs and policies of {count} tunnels",
            unit="seconds",
            ours=tuple(inherited),
            theirs=(),
        )
    )


async def _program(count: int) -> tuple[float, float, float]:
    """SAs and policies a second, and the seconds in which another back end takes them over."""
    backend = XfrmBackend()
    await backend.start()
    sas, policies = _sas(count), _policies(count)
    start = time.monotonic()
    for spec in sas:
        await backend.add_sa(spec)
    middle = time.monotonic()
    await backend.put_policies(policies, ())
    end = time.monotonic()
    await backend.close(remove=False)
    second = XfrmBackend()
    await second.start()
    found = await second.inherit()
    adopted = time.monotonic() - end
    if (len(found.sas), len(found.policies)) != (len(sas), len(policies)):
        raise LabError(f"adopted {len(found.sas)} SAs and {len(found.policies)} policies")
    await second.close(remove=True)
    return len(sas) / (middle - start), len(policies) / (end - middle), adopted


def _net(index: int) -> str:
    return f"10.{64 + index // 250}.{index % 250}.0/24"


def _sas(count: int) -> list[SaSpec]:
    found = []
    for index in range(count):
        out = SaSpec(
            id=SaId(Direction.OUT, Protocol.ESP, 0x10000 + index, _OUTER[1]),
            source=Endpoint(_OUTER[0], 0),
            destination=Endpoint(_OUTER[1], 0),
            encap=False,
            reqid=REQID_BASE + 1 + index,
            mode=Mode.TUNNEL,
            encryption=Transform(TransformType.ENCR, Encr.AES_GCM_16, 128),
            encryption_key=Secret(_KEY),
            integrity=None,
            integrity_key=Secret(b""),
            esn=False,
            replay_window=64,
            local_ts=(TrafficSelector.network("10.1.0.0/24"),),
            remote_ts=(TrafficSelector.network(_net(index)),),
            peer="default/b",
            child="net",
        )
        there = Endpoint(_OUTER[1], 0)
        inward = replace(
            out,
            id=SaId(Direction.IN, Protocol.ESP, 0x20000 + index, _OUTER[0]),
            source=there,
            destination=Endpoint(_OUTER[0], 0),
            local_ts=out.remote_ts,
            remote_ts=out.local_ts,
        )
        found += [out, inward]
    return found


def _policies(count: int) -> list[PolicySpec]:
    here = TrafficSelector.network("10.1.0.0/24")
    found = []
    for index in range(count):
        there = TrafficSelector.network(_net(index))
        for direction in PolicyDirection:
            ends = (here, there) if direction is PolicyDirection.OUT else (there, here)
            outer = _OUTER if direction is PolicyDirection.OUT else _OUTER[::-1]
            found.append(
                PolicySpec(
                    id=PolicyId(direction, *ends),
                    action=PolicyAction.ENCRYPT,
                    priority=1000 + index,
                    reqid=REQID_BASE + 1 + index,
                    local=outer[0],
                    remote=outer[1],
                )
            )
    return found


def _sa_lines(count: int) -> list[str]:
    return [
        f"xfrm state add src {src} dst {dst} proto esp spi {base + index:#x} reqid {index + 1} "
        f"mode tunnel replay-window 64 aead rfc4106(gcm(aes)) 0x{_KEY.hex()} 128"
        for index in range(count)
        for src, dst, base in ((*_OUTER, 0x10000), (*_OUTER[::-1], 0x20000))
    ]


def _policy_lines(count: int) -> list[str]:
    lines = []
    for index in range(count):
        for direction in ("out", "in", "fwd"):
            ends = ["10.1.0.0/24", _net(index)]
            outer = list(_OUTER)
            if direction != "out":
                ends.reverse()
                outer.reverse()
            end = f"proto esp reqid {index + 1} mode tunnel"
            lines.append(
                f"xfrm policy add src {ends[0]} dst {ends[1]} dir {direction} "
                f"priority {1000 + index} tmpl src {outer[0]} dst {outer[1]} {end}"
            )
    return lines


def _start_up(count: int) -> None:
    """The whole gateway with passive tunnels: from the fork to all policies in the kernel, and the
    same again for one that finds them there."""
    folder = Path("/tmp/many")  # noqa: S108  # of this machine, which nobody else uses
    folder.mkdir()
    with Topology() as top:
        gateway = SlowGateway(top, top.gw_a, folder)
        documents = [manifests.secret("key", _PSK)]
        for index in range(count):
            documents += _tunnel(top, index)
        gateway.apply(*documents)
        seconds, rss = [], []
        for _ in range(2):
            start = time.monotonic()
            gateway.start(timeout=120)
            gateway.wait(lambda: _blocked(top.gw_a) >= count, "all policies", timeout=120)
            seconds.append(time.monotonic() - start)
            rss.append(_rss(gateway.pid))
            gateway.kill()
        say(_single(f"kernel: gateway with {count} tunnels starts", "seconds", seconds[0]))
        say(_single(f"kernel: gateway with {count} tunnels, killed, starts", "seconds", seconds[1]))
        say(_single(f"kernel: RSS of it with {count} tunnels", "MiB", rss[1]))


def _single(what: str, unit: str, value: float) -> Row:
    return Row(what=what, unit=unit, ours=(value,), theirs=())


def _tunnel(top: Topology, index: int) -> list[manifests.Document]:
    name = f"p{index}"
    return [
        manifests.policy(
            name, peer_name=name, selectors=[(top.a.lans[0], _net(index))], selectorMode="Combined"
        ),
        manifests.peer(
            name,
            address=f"198.51.{100 + index // 250}.{index % 250 + 1}",
            psk_from="key",
            localAddress=top.a.wan_address(),
            passive=True,
        ),
    ]


def _blocked(namespace: Namespace) -> int:
    """Outbound policies in the kernel."""
    return namespace.run("ip", "xfrm", "policy").count("dir out")


def _rss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LabError(f"no VmRSS of process {pid}")


def _nftables(count: int) -> None:
    """The table for so many subnets, and one more subnet in it."""
    policies = [p for p in _policies(count) if p.id.direction is PolicyDirection.OUT]
    with spd_rig() as rig:
        seconds = []
        for subset in (policies[:-1], policies):
            intent = intent_of(*subset)
            start = time.monotonic()
            rig.run(partial(rig.steering.guard, intent, live=frozenset(), mtu=1390))
            seconds.append(time.monotonic() - start)
        say(_single(f"kernel: nftables table for {count} subnets", "seconds", seconds[0]))
        say(_single(f"kernel: one more of {count} subnets in it", "seconds", seconds[1]))


def _load_modules() -> None:
    """A first table, which is not measured: to load the kernel's modules for it may take longer
    than a gateway waits."""
    with spd_rig() as rig:
        for _ in range(10):
            with contextlib.suppress(ToolError):
                rig.run(partial(rig.steering.guard, Intent(), live=frozenset(), mtu=1390))
                return
    raise LabError("the guest takes no nftables table")


@contextlib.contextmanager
def _namespace(label: str) -> Iterator[Namespace]:
    namespace = Namespace(label)
    try:
        yield namespace
    finally:
        namespace.delete()
