"""Which network namespace this is, for what is kept on disk about one."""

from __future__ import annotations

import os
import socket
from typing import Final

#: Linux 5.14; the value of every architecture but parisc and sparc.
_SO_NETNS_COOKIE: Final = 71


def identity() -> str:
    """The name of the calling thread's network namespace, the same until the node boots again.

    The kernel's cookie, which no other namespace gets. Kernels before 5.14 have only the inode,
    which a later namespace may get once this one is gone.
    """
    try:
        with socket.socket(socket.AF_UNIX) as any_socket:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return f"inode-{os.stat('/proc/thread-self/ns/net').st_ino}"
    return str(int.from_bytes(cookie, "little"))
