"""Chains of iptables, out of what ``iptables-save`` writes (both flavours, both versions). Pure."""

from __future__ import annotations

import ipaddress
import shlex
from typing import Final

from ipsec_gateway.classify import Network
from ipsec_gateway.forward.chains import (
    Address,
    Base,
    Condition,
    Interface,
    Protected,
    Rule,
    Side,
    Unknown,
    Verdict,
)

CHAIN: Final = "FORWARD"

_VERDICTS: Final = {
    "ACCEPT": Verdict.ACCEPT,
    "DROP": Verdict.DROP,
    "REJECT": Verdict.DROP,
    "RETURN": Verdict.RETURN,
    "QUEUE": Verdict.OTHER,
    "NFQUEUE": Verdict.OTHER,
    "SYNPROXY": Verdict.OTHER,
}


def bases(text: str, tool: str, family: str) -> list[Base]:
    """The chains FORWARD of all tables in the text."""
    found: list[Base] = []
    table, policies, lines = "", dict[str, str](), list[list[str]]()
    for line in text.splitlines():
        if line.startswith("*"):
            table, policies, lines = line[1:].strip(), {}, []
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[name] = policy
        elif line.startswith("-A "):
            lines.append(shlex.split(line)[1:])
        elif line == "COMMIT" and CHAIN in policies:
            chains: dict[str, list[Rule]] = {name: [] for name in policies}
            for chain, *words in lines:
                chains[chain].append(rule(tuple(words), policies))
            others = {name: tuple(rules) for name, rules in chains.items()}
            drops = policies[CHAIN] == "DROP"
            found.append(Base(tool, family, table, CHAIN, drops, others[CHAIN], others))
    return found


def rule(words: tuple[str, ...], chains: object = ()) -> Rule:
    """One rule, of its words after the chain's name. ``chains`` has the names of the table's."""
    conditions: list[Condition] = []
    verdict, target, comment = Verdict.NONE, "", ""
    negated = False
    policy: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word == "-m":
            kind = next(rest, "")
            if kind not in ("policy", "comment"):
                conditions.append(Unknown())
        elif word in ("-j", "-g"):
            target = next(rest, "")
            jump = Verdict.GOTO if word == "-g" else Verdict.JUMP
            ours = isinstance(chains, dict) and target in chains
            verdict = jump if ours else _VERDICTS.get(target, Verdict.NONE)
            break  # what follows is the target's
        elif word in ("-i", "-o"):
            name = next(rest, "")
            name = f"{name[:-1]}*" if name.endswith("+") else name
            conditions.append(Interface("in" if word == "-i" else "out", name, negated))
        elif word in ("-s", "-d"):
            network = _network(next(rest, ""))
            known = Address(word == "-s", (network,), negated) if network else Unknown()
            conditions.append(known)
        elif word == "--comment":
            comment = next(rest, "")
        elif word in ("--dir", "--pol"):
            policy[word] = f"not {next(rest, '')}" if negated else next(rest, "")
        elif word.startswith("-"):
            conditions.append(Unknown())
        negated = False
    conditions += _policy(policy)
    return Rule(tuple(conditions), verdict, target, words=words, comment=comment)


def _policy(policy: dict[str, str]) -> list[Condition]:
    if not policy:
        return []
    side, kind = policy.get("--dir"), policy.get("--pol")
    if side not in ("in", "out") or kind not in ("ipsec", "none"):
        return [Unknown()]
    known: Side = "in" if side == "in" else "out"
    return [Protected(known, kind == "none")]


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None  # a mask with holes
