"""The error counters of the kernel's IPsec, ``/proc/net/xfrm_stat``, and what each of them means.

They are of one network namespace and never go back. The names on the right of MEANINGS are those of
RouterOS, ``/ip ipsec statistics``, where it has one (its manual, section "Statistics"); later
kernels have counters of their own, which are passed on under the kernel's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Of this process's network namespace. Not there where the kernel has no XFRM statistics.
PATH: Final = Path("/proc/net/xfrm_stat")

_LINE: Final = re.compile(r"^Xfrm(\w+)\s+(\d+)$")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*")


@dataclass(frozen=True, slots=True)
class Meaning:
    """``routeros`` is empty where RouterOS has no such counter; ``text`` is for people."""

    routeros: str
    text: str


#: By the kernel's name without ``Xfrm``, in its order.
MEANINGS: Final[Mapping[str, Meaning]] = {
    "InError": Meaning("in-errors", "All other inbound errors."),
    "InBufferError": Meaning("in-buffer-errors", "No buffer was free."),
    "InHdrError": Meaning("in-header-errors", "The ESP, AH or outer IP header is wrong."),
    "InNoStates": Meaning(
        "in-no-states",
        "No SA has this SPI, address and protocol: the peer still uses an old SA, for example "
        "after a restart here.",
    ),
    "InStateProtoError": Meaning(
        "in-state-protocol-errors",
        "The transformation failed: keys or algorithms differ, or the packet was changed.",
    ),
    "InStateModeError": Meaning(
        "in-state-mode-errors", "Tunnel mode met transport mode, or the inner packet is broken."
    ),
    "InStateSeqError": Meaning(
        "in-state-sequence-errors",
        "The sequence number is outside of the window or was seen: packets are reordered (QoS) "
        "or replayed; a larger replayWindow helps against the first.",
    ),
    "InStateExpired": Meaning("in-state-expired", "The SA is at its end: it was rekeyed too late."),
    "InStateMismatch": Meaning(
        "in-state-mismatches", "An option differs, such as ESP in UDP and ESP without."
    ),
    "InStateInvalid": Meaning("in-state-invalid", "The SA is being deleted."),
    "InTmplMismatch": Meaning(
        "in-template-mismatches",
        "The SA is right and the policy wants another, or a protected packet came in clear text.",
    ),
    "InNoPols": Meaning("in-no-policies", "The SA is right and no policy allows the packet."),
    "InPolBlock": Meaning("in-policy-blocked", "A discard policy dropped it."),
    "InPolError": Meaning("in-policy-errors", "The policy has an error."),
    "OutError": Meaning("out-errors", "All other outbound errors."),
    "OutBundleGenError": Meaning(
        "out-bundle-errors", "The chain of SAs for a packet could not be made."
    ),
    "OutBundleCheckError": Meaning(
        "out-bundle-check-errors", "The chain of SAs for a packet is no longer valid."
    ),
    "OutNoStates": Meaning(
        "out-no-states", "There is a policy and no SA for it: the tunnel is down."
    ),
    "OutStateProtoError": Meaning("out-state-protocol-errors", "The transformation failed."),
    "OutStateModeError": Meaning(
        "out-state-mode-errors", "The mode failed, such as a packet that is too big for its tunnel."
    ),
    "OutStateSeqError": Meaning(
        "out-state-sequence-errors", "The sequence numbers of the SA are used up."
    ),
    "OutStateExpired": Meaning("out-state-expired", "The SA is at its end."),
    "OutPolBlock": Meaning("out-policy-blocked", "A discard policy dropped it."),
    "OutPolDead": Meaning("out-policy-dead", "The policy is being deleted."),
    "OutPolError": Meaning("out-policy-errors", "The policy has an error."),
    "FwdHdrError": Meaning("", "The header of a forwarded packet is wrong."),
    "OutStateInvalid": Meaning("", "The SA is not valid, or is being deleted."),
    "AcquireError": Meaning("", "The packet came while an SA was being asked for in vain."),
    "OutStateDirError": Meaning("", "The SA is for the other direction."),
    "InStateDirError": Meaning("", "The SA is for the other direction."),
    "InIptfsError": Meaning("", "IP-TFS (RFC 9347) failed."),
    "OutNoQueueSpace": Meaning("", "The queue of IP-TFS (RFC 9347) is full."),
}


def metric(name: str) -> str:
    """``InNoStates`` as ``ipsec_xfrm_in_no_states``."""
    return "ipsec_xfrm_" + "_".join(_WORD.findall(name)).lower()


def help_text(name: str) -> str:
    """What the counter means, with the names that the kernel and RouterOS give it."""
    known = MEANINGS.get(name)
    if known is None:
        return f"Xfrm{name} of /proc/net/xfrm_stat."
    also = f", {known.routeros} in RouterOS" if known.routeros else ""
    return f"{known.text} (Xfrm{name}{also})"


def parse(text: str) -> dict[str, int]:
    """Counters by the kernel's name without ``Xfrm``. Other lines are passed over."""
    return {m[1]: int(m[2]) for line in text.splitlines() if (m := _LINE.match(line.strip()))}


def read(path: Path = PATH) -> dict[str, int]:
    """The counters now; empty where the kernel has none."""
    try:
        return parse(path.read_text(encoding="ascii", errors="replace"))
    except FileNotFoundError:
        return {}
