"""Root rights for the lab without being root: a user namespace of our own.

Inside of it we are uid 0 over network namespaces that we make, and over nothing else. /run gets a
tmpfs, because iproute2 keeps the names of namespaces in /run/netns.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from ipsec_lab.netns import missing_programs

_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21
#: Set in the re-executed process, so that a kernel that lies cannot make us loop.
INSIDE: Final = "KUBE_IPSEC_USERNS"
_UNSHARE: Final = ("unshare", "--user", "--map-root-user", "--net", "--mount")


def has_network_rights() -> bool:
    """Whether this process may make network namespaces (CAP_SYS_ADMIN and CAP_NET_ADMIN)."""
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return all(effective >> cap & 1 for cap in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def missing_rights() -> str | None:
    """None if the lab can run here, as root or in a user namespace; else one line why not."""
    if has_network_rights():
        return None
    if missing_programs("unshare"):
        return "needs root, or unshare (package util-linux) for a user namespace"
    probe = subprocess.run(
        [*_UNSHARE, "true"], capture_output=True, text=True, errors="replace", check=False
    )
    if probe.returncode == 0:
        return None
    reason = probe.stderr.strip() or f"exit {probe.returncode}"
    return f"needs root: this kernel refuses user namespaces ({reason})"


def reexecute(argv: Sequence[str]) -> NoReturn:
    """Replace this process by ``argv`` as root of a user namespace with its own /run."""
    os.environ[INSIDE] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    script = 'mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns && exec "$@"'
    os.execvp(_UNSHARE[0], [*_UNSHARE, "sh", "-c", script, "sh", *argv])  # noqa: S606  # no shell in between
