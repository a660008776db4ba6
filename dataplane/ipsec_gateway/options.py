"""How a gateway is run."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from ipsec_gateway.classify import Network
from ipsec_gateway.ipsec.abilities import Abilities
from ipsec_gateway.marks import DEFAULT, Numbers
from ipsec_gateway.udp import IKE_PORT


@dataclass(frozen=True, slots=True)
class Options:
    """``device`` is what the backend creates, None if it needs none;
    ``encapsulate`` says that it carries ESP faster in UDP, ``kernel`` that the kernel's SPD
    encrypts. With neither device nor kernel nothing is steered (tests). ``abilities`` are what
    proposals are restricted to, None: everything.

    ``resume`` is where records for a later life are kept; None: the gateway says good-bye and
    leaves nothing, as it does with ``goodbye``, which also takes away what an earlier one left.
    """

    state: Path | None = None
    listen: tuple[str, int] | None = None
    device: str | None = None
    encapsulate: bool = False
    kernel: bool = False
    abilities: Abilities | None = None
    resume: Path | None = None
    goodbye: bool = False
    ports: tuple[int, int] = (IKE_PORT, 4500)
    #: Networks of Services: their addresses need connection tracking.
    services: tuple[Network, ...] = ()
    #: Mark bits and tables that are ours on this node.
    numbers: Numbers = DEFAULT
    #: Put rules that let tunnels' traffic pass into others' chains on the forward hook.
    open_forward: bool = False
    #: Have the kernel track connections only where somebody translates sources.
    lazy_tracking: bool = False
    #: Answer probes of other gateways by UDP.
    probe_responder: bool = True
    name: str = field(default_factory=socket.gethostname)
