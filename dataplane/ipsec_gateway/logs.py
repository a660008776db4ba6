"""Logging: one line per event, readable or as JSON; names and not numbers, never a secret."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from ipsec_ike import events
from ipsec_ike.events import Event

Format = Literal["text", "json"]

log = logging.getLogger("ipsec_gateway")


def setup(form: Format, level: str) -> None:
    """Log to standard error in this form; the process has one log."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(message)s",
                timestamp="time",
                rename_fields={"levelname": "level", "message": "msg"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def log_event(event: Event) -> None:
    """Log one event of the engine."""
    level = _LEVELS.get(type(event), logging.INFO)
    if not log.isEnabledFor(level):
        return
    extra = {"event": type(event).__name__, "peer": event.peer}
    log.log(level, "%s: %s", event.peer or "unknown peer", describe(event), extra=extra)


_LEVELS: dict[type[Event], int] = {
    events.IkeSaConnecting: logging.DEBUG,
    events.IkeSaRekeyed: logging.INFO,
    events.ProposalMismatch: logging.WARNING,
    events.SelectorsMismatch: logging.WARNING,
    events.SelectorsRefused: logging.WARNING,
    events.AuthFailed: logging.WARNING,
    events.Warned: logging.WARNING,
}


def describe(event: Event) -> str:
    """The event in words."""
    match event:
        case events.IkeSaConnecting():
            return f"connecting to {event.remote}"
        case events.IkeSaResumed():
            return f"IKE SA with {event.remote} goes on, {event.age:.0f} s old, {event.suite}"
        case events.IkeSaUp():
            role = "initiator" if event.initiator else "responder"
            nat = {
                (False, False): "",
                (True, False): ", we are behind a NAT",
                (False, True): ", the peer is behind a NAT",
                (True, True): ", both are behind a NAT",
            }[event.nat_local, event.nat_remote]
            return (
                f"IKE SA established with {event.remote} ({event.remote_id}) as {role}, "
                f"{event.suite}{nat}"
            )
        case events.IkeSaRekeyed():
            return f"IKE SA rekeyed, {event.suite}"
        case events.IkeSaDown():
            what = "closed" if event.established else "not established"
            return f"IKE SA with {event.remote} {what}: {event.reason.value}: {event.message}"
        case events.ChildSaResumed():
            return f"child {event.child} goes on, {event.suite}"
        case events.ChildSaUp():
            encap = ", in UDP" if event.encap else ""
            return (
                f"child {event.child} installed, {event.suite}{encap}: "
                f"{_selectors(event.local_ts)} to {_selectors(event.remote_ts)}"
            )
        case events.ChildSaRekeyed():
            return f"child {event.child} rekeyed, {event.suite}"
        case events.ChildSaDown():
            what = "closed" if event.spi_in else "not installed"
            return f"child {event.child} {what}: {event.reason.value}: {event.message}"
        case events.ProposalMismatch():
            text = "; ".join(event.differences)
            return (
                f"no common proposal for {event.stage}: {text or 'the peer does not say why'} "
                f"(ours: {', '.join(event.ours)})"
            )
        case events.SelectorsNarrowed():
            return (
                f"child {event.child} narrowed by the peer to {_selectors(event.agreed[0])} to "
                f"{_selectors(event.agreed[1])}"
            )
        case events.SelectorsMismatch():
            return (
                f"child {event.child}: no common traffic selectors, ours "
                f"{_selectors(event.ours[0])} to {_selectors(event.ours[1])}"
            )
        case events.SelectorsRefused():
            return (
                f"template {event.template}: {event.remote_id} does not get "
                f"{_selectors(event.wanted[0])} to {_selectors(event.wanted[1])}: {event.message}"
            )
        case events.AuthFailed():
            who = "the peer refused us" if event.ours else f"{event.remote_id} is not who it claims"
            return f"authentication failed with {event.remote}: {who}: {event.message}"
        case events.PeerMoved():
            return f"the peer moved from {event.old} to {event.new}"
        case events.Warned():
            return event.message
        case _:
            return type(event).__name__


def _selectors(selectors: tuple[object, ...]) -> str:
    return ", ".join(map(str, selectors)) or "nothing"
