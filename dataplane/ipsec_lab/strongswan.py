"""Debian's strongSwan in a namespace: a charon with its own /run, control socket, log and settings.

Where the kernel has no ESP charon carries its packets itself (kernel-libipsec, the default here).
That plugin knows tunnel mode only, puts everything into UDP (it pretends a NAT), has no ESN, and
needs an address of the gateway inside of ``local_ts``. On the kernels of ``ipsec_lab.guest`` it is
``CharonSettings(kernel=True)``: kernel-netlink, with all that XFRM can do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import jinja2

from ipsec_lab.netns import LabError, Namespace, end_process, missing_programs
from ipsec_lab.topology import Topology
from ipsec_lab.vici import Section, Vici

CHARON: Final = Path("/usr/lib/ipsec/charon")
_PLUGIN_DIR: Final = Path("/usr/lib/ipsec/plugins")
_PLUGINS: Final = (
    "random nonce openssl aes aesni sha1 sha2 hmac kdf gcm ccm ctr cmac xcbc chapoly drbg "
    "curve25519 gmp pem pkcs1 pkcs8 pubkey x509 constraints "
)
#: kernel-libipsec before kernel-netlink: the first to register carries the packets.
_USERSPACE: Final = "kernel-libipsec kernel-netlink socket-default vici"
_KERNEL: Final = "kernel-netlink socket-default vici"
_NEEDED: Final = ("kernel-libipsec", "openssl", "vici", "chapoly")
PACKAGES: Final = (
    "strongswan-charon strongswan-swanctl libcharon-extra-plugins "
    "libstrongswan-standard-plugins libstrongswan-extra-plugins"
)


def missing() -> str | None:
    """None if charon can be used here; else one line that says what is not there and what to do."""
    lacking = [] if CHARON.exists() else [str(CHARON)]
    lacking += missing_programs("swanctl")
    lacking += [p for p in _NEEDED if not (_PLUGIN_DIR / f"libstrongswan-{p}.so").exists()]
    if not lacking:
        return None
    return (
        f"strongSwan is not complete here ({', '.join(lacking)} missing): "
        f"apt-get install --no-install-recommends {PACKAGES}"
    )


@dataclass(frozen=True, kw_only=True)
class Child:
    """A child of a connection; names and meaning of swanctl.conf. Times in seconds, 0 is never."""

    name: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    #: Either this or ``ah_proposals`` is used: the latter if there are any.
    esp_proposals: tuple[str, ...] = ("aes128gcm16-x25519",)
    ah_proposals: tuple[str, ...] = ()
    mode: str = "tunnel"
    start_action: str = "none"
    close_action: str = "none"
    dpd_action: str = "clear"
    rekey_time: int = 0
    rand_time: int = 0
    life_time: int = 0
    rekey_packets: int = 0
    life_packets: int = 0
    rekey_bytes: int = 0
    life_bytes: int = 0
    replay_window: int = 32
    #: Of an xfrm interface, in and out; kernel back end only.
    if_id: int = 0


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A connection; names and meaning of swanctl.conf. Times in seconds, 0 is never."""

    name: str
    psk: bytes = field(repr=False)
    children: tuple[Child, ...]
    local_addrs: tuple[str, ...] = ()
    remote_addrs: tuple[str, ...] = ()
    local_id: str = ""
    remote_id: str = ""
    proposals: tuple[str, ...] = ("aes128gcm16-prfsha256-x25519",)
    encap: bool = False
    fragmentation: str = "yes"
    childless: str = "allow"
    unique: str = "no"
    keyingtries: int = 1
    dpd_delay: int = 0
    rekey_time: int = 0
    rand_time: int = 0
    over_time: int = 0

    @property
    def secret_ids(self) -> tuple[str, ...]:
        """The identities that the secret belongs to; none means everybody."""
        return tuple(i for i in (self.local_id, self.remote_id) if i)


@dataclass(frozen=True, kw_only=True)
class CharonSettings:
    """strongswan.conf. ``extra`` holds further keys of the charon section."""

    threads: int = 16
    retransmit_timeout: float = 1.0
    retransmit_base: float = 1.4
    retransmit_tries: int = 5
    cookie_threshold: int = 30
    fragment_size: int = 1280
    delete_rekeyed_delay: int = 5
    keep_alive: int = 20
    log_level: int = 2
    #: The kernel carries the packets.
    kernel: bool = False
    extra: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class CharonChild:
    """A CHILD_SA of ``Charon.sas``; SPIs as integers, octets and packets of the inner traffic."""

    name: str
    unique_id: int
    state: str
    spi_in: int
    spi_out: int
    packets_in: int
    packets_out: int
    suite: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]


@dataclass(frozen=True)
class CharonIkeSa:
    """An IKE_SA of ``Charon.sas``."""

    name: str
    unique_id: int
    state: str
    initiator: bool
    spi_i: str
    spi_r: str
    remote_host: str
    remote_port: int
    suite: str
    children: tuple[CharonChild, ...]


class Charon:
    """One charon. ``directory`` gets its configuration, socket and log; it must exist.

    The topology ends it. Raises LabError where charon does not come up or refuses a command.
    """

    def __init__(
        self,
        topology: Topology,
        namespace: Namespace,
        directory: Path,
        settings: CharonSettings | None = None,
    ) -> None:
        if problem := missing():
            raise LabError(problem)
        self._topology: Final = topology
        self.namespace: Final = namespace
        self.directory: Final = directory
        self.settings = settings or CharonSettings()
        self.log_path: Final = directory / "charon.log"
        self.socket_path: Final = directory / "vici"
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._templates: Final = jinja2.Environment(
            loader=jinja2.PackageLoader("ipsec_lab", ""),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # noqa: S701  # configuration files, not HTML
            keep_trailing_newline=True,
        )
        # Copies: where AppArmor is on, its profiles for the paths in /usr keep charon and swanctl
        # from reading a configuration outside of /etc.
        for program in (CHARON, Path(shutil.which("swanctl", path=_sbin_path()) or "swanctl")):
            shutil.copy2(program, directory / program.name)

    @property
    def pid(self) -> int:
        """Of the running charon. Raises LabError if it was not started."""
        if self._process is None:
            raise LabError("charon is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: float = 20.0) -> None:
        """Start charon and wait until it answers."""
        config = self.directory / "strongswan.conf"
        plugins = _PLUGINS + (_KERNEL if self.settings.kernel else _USERSPACE)
        config.write_text(
            self._templates.get_template("strongswan.conf.j2").render(
                s=self.settings, plugins=plugins, socket=self.socket_path, log=self.log_path
            )
        )
        self.socket_path.unlink(missing_ok=True)
        # A killed charon leaves its routing rules behind.
        for family in ("-4", "-6"):
            self.namespace.run("ip", family, "rule", "del", "table", "220", check=False)
        # charon writes its pid to a fixed place in /run, hence a private one.
        script = f'mount -t tmpfs tmpfs /run && exec "{self.directory / CHARON.name}"'
        self._output = (self.directory / "charon.out").open("ab")
        self._process = self._topology.start(
            self.namespace,
            ["unshare", "--mount", "sh", "-c", script],
            log=self._output,
            env={**os.environ, "STRONGSWAN_CONF": str(config)},
        )
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                raise LabError(f"charon ended at once: {self._first_complaint()}")
            with contextlib.suppress(LabError), self.vici() as vici:
                vici.request("version")
                return
            if time.monotonic() > deadline:
                raise LabError(f"charon does not answer after {timeout:g} s, see {self.log_path}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End charon in an orderly way: it deletes its SAs and tells the peers."""
        if self._process is not None:
            end_process(self._process, grace=10.0)
        self._closed()

    def kill(self) -> None:
        """End charon without a word to anybody."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._closed()

    def _closed(self) -> None:
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def vici(self, *, timeout: float = 30.0) -> Vici:
        """A new connection to the control socket."""
        return Vici(self.socket_path, timeout=timeout)

    def load(self, *connections: Connection) -> None:
        """Make these the only connections and secrets."""
        config = self.directory / "swanctl.conf"
        config.touch(mode=0o600)
        config.write_text(
            self._templates.get_template("swanctl.conf.j2").render(connections=connections)
        )
        self.namespace.run(
            str(self.directory / "swanctl"),
            "--load-all",
            "--clear",
            "--file",
            str(config),
            "--uri",
            f"unix://{self.socket_path}",
        )

    def initiate(self, *, child: str = "", ike: str = "", timeout: float = 15.0) -> None:
        """Set up a child, or with ``ike`` alone a childless IKE_SA, and wait for it.

        Raises ViciError where the peer refuses or does not answer in time.
        """
        message: Section = {"timeout": str(int(timeout * 1000))}
        message |= {"child": child} if child else {}
        message |= {"ike": ike} if ike else {}
        with self.vici(timeout=timeout + 10) as vici:
            vici.request("initiate", message)

    def terminate(self, ike: str, *, force: bool = False, timeout: float = 10.0) -> None:
        """Delete an IKE_SA with its children and wait for the peer's answer."""
        with self.vici(timeout=timeout + 10) as vici:
            vici.request(
                "terminate",
                {
                    "ike": ike,
                    "force": "yes" if force else "no",
                    "timeout": str(int(timeout * 1000)),
                },
            )

    def terminate_child(self, child: str, *, timeout: float = 10.0) -> None:
        """Delete one child and wait for the peer's answer."""
        with self.vici(timeout=timeout + 10) as vici:
            vici.request("terminate", {"child": child, "timeout": str(int(timeout * 1000))})

    def rekey(self, *, child: str = "", ike: str = "") -> None:
        """Start the rekeying of a child or of an IKE_SA; does not wait."""
        with self.vici() as vici:
            vici.request("rekey", {"child": child} if child else {"ike": ike})

    def sas(self) -> list[CharonIkeSa]:
        """All IKE_SAs, half-open ones too."""
        with self.vici() as vici:
            events = vici.stream("list-sas", "list-sa")
        return [_ike_sa(name, body) for event in events for name, body in event.items()]

    def established(self, ike: str) -> list[CharonIkeSa]:
        """The established IKE_SAs of a connection."""
        return [sa for sa in self.sas() if sa.name == ike and sa.state == "ESTABLISHED"]

    def wait_for(
        self,
        condition: Callable[[list[CharonIkeSa]], bool],
        what: str,
        *,
        timeout: float = 10.0,
    ) -> list[CharonIkeSa]:
        """Poll ``sas`` until ``condition``. Raises LabError naming ``what`` after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while True:
            sas = self.sas()
            if condition(sas):
                return sas
            if time.monotonic() > deadline:
                raise LabError(f"charon: {what}: not within {timeout:g} s; it has {sas}")
            time.sleep(0.05)

    def wait_installed(self, child: str, *, timeout: float = 10.0) -> CharonChild:
        """Wait for a child with SAs in both directions."""

        def installed(sas: list[CharonIkeSa]) -> list[CharonChild]:
            return [
                c for sa in sas for c in sa.children if c.name == child and c.state == "INSTALLED"
            ]

        sas = self.wait_for(lambda s: bool(installed(s)), f"child {child}", timeout=timeout)
        return installed(sas)[-1]

    def log(self) -> str:
        """Everything that charon has logged so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _first_complaint(self) -> str:
        text = (self.directory / "charon.out").read_text(errors="replace").strip()
        return text.splitlines()[0] if text else f"no output, see {self.log_path}"


def _sbin_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _ike_sa(name: str, body: Any) -> CharonIkeSa:
    """From the untyped tree of a list-sa event."""
    return CharonIkeSa(
        name=name,
        unique_id=int(body["uniqueid"]),
        state=body["state"],
        initiator=body.get("initiator") == "yes",
        spi_i=body["initiator-spi"],
        spi_r=body["responder-spi"],
        remote_host=body["remote-host"],
        remote_port=int(body["remote-port"]),
        suite=_suite(body),
        children=tuple(_child(child) for child in body.get("child-sas", {}).values()),
    )


def _child(body: Any) -> CharonChild:
    return CharonChild(
        name=body["name"],
        unique_id=int(body["uniqueid"]),
        state=body["state"],
        spi_in=int(body.get("spi-in", "0"), 16),
        spi_out=int(body.get("spi-out", "0"), 16),
        packets_in=int(body.get("packets-in", "0")),
        packets_out=int(body.get("packets-out", "0")),
        suite=_suite(body),
        local_ts=tuple(body.get("local-ts", ())),
        remote_ts=tuple(body.get("remote-ts", ())),
    )


def _suite(body: Any) -> str:
    """Such as ``AES_GCM_16_128/PRF_HMAC_SHA2_256/CURVE_25519``."""
    encryption = body.get("encr-alg", "")
    if size := body.get("encr-keysize"):
        encryption += f"_{size}"
    parts = (encryption, body.get("integ-alg"), body.get("prf-alg"), body.get("dh-group"))
    return "/".join(part for part in parts if part)
