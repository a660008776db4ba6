"""The kernel's SPD, as far as it is ours: what is in it, and how it changes.

An entry (PolicySpec) is one policy of the kernel, or several where it has no single one
(``xfrm_policy``). Every change of a policy is one step for the kernel, so that there is no moment
without it. A policy that somebody else has made is never changed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from ipsec_gateway.ipsec.base import (
    DataplaneError,
    Level,
    PolicyDirection,
    PolicyId,
    PolicySpec,
)
from ipsec_gateway.ipsec.xfrm_causes import policy_cause, policy_title
from ipsec_gateway.ipsec.xfrm_messages import (
    Message,
    Policy,
    delete_policy,
    dump_policies,
    put_policy,
)
from ipsec_gateway.ipsec.xfrm_netlink import XfrmSocket
from ipsec_gateway.ipsec.xfrm_numbers import Msg
from ipsec_gateway.ipsec.xfrm_policy import (
    INDEX_BASE,
    Ends,
    Key,
    exempts,
    kernel_policies,
    key_of,
    owned,
    policy_spec,
)

#: Refusals that are told one by one.
_TOLD: Final = 3


class KernelSpd:
    """Our entries. All methods raise DataplaneError."""

    def __init__(self, kernel: XfrmSocket) -> None:
        self._kernel: Final = kernel
        self._entries: Final[dict[PolicyId, PolicySpec]] = {}
        self._pieces: Final[dict[PolicyId, dict[Key, Policy]]] = {}
        #: Whose each policy of the kernel is; None: nobody's any more.
        self._owners: Final[dict[Key, PolicyId | None]] = {}
        self._by_reqid: Final[dict[int, set[PolicyId]]] = {}
        #: Ends of the newest outbound SA of each reqid, the last ones where it is gone.
        self._ends: Final[dict[int, Ends]] = {}
        #: Reqids that have an outbound SA.
        self._live: Final[set[int]] = set()
        self._index = INDEX_BASE >> 3

    @property
    def entries(self) -> Mapping[PolicyId, PolicySpec]:
        """What is in force."""
        return MappingProxyType(self._entries)

    def load(self, ends: Mapping[int, Ends]) -> None:
        """Take in what an earlier life left. ``ends`` are those of its outbound SAs."""
        self._ends.update(ends)
        self._live.update(ends)
        exemptions = []
        for policy in map(Policy.decode, self._kernel.dump(dump_policies())):
            if not owned(policy):
                continue
            self._index = max(self._index, policy.index >> 3)
            spec = policy_spec(policy)
            if spec is None:
                exemptions.append(policy)
            else:
                self._enter(spec)
                self._own(spec.id, policy)
        for policy in exemptions:
            self._owners[key_of(policy)] = None
            for policy_id, pieces in self._pieces.items():
                if any(exempts(policy, piece) for piece in pieces.values()):
                    self._own(policy_id, policy)
                    break

    def apply(self, put: Sequence[PolicySpec], delete: Sequence[PolicyId]) -> None:
        """Apply the puts, then the deletes. What is refused is told; the rest is done."""
        troubles: list[str] = []
        changes: list[tuple[Message, PolicySpec, Policy]] = []
        for spec in put:
            try:
                changes += self._changes(spec)
            except DataplaneError as exc:
                troubles.append(f"{policy_title(spec)}: {exc}")
        troubles += self._carry_out(changes)
        kept = {spec.id for spec in put}
        stale: list[Key] = []
        for policy_id in delete:
            if policy_id not in kept and policy_id in self._pieces:
                stale += self._pieces[policy_id]
                self._leave(policy_id)
        troubles += self._uninstall(stale)
        _raise(troubles)

    def lead(self, reqid: int, ends: Ends) -> None:
        """Let the outbound policies of ``reqid`` lead to its newest SA."""
        if self._ends.get(reqid) == ends and reqid in self._live:
            return
        self._ends[reqid] = ends
        self._live.add(reqid)
        self._renew(reqid)

    def lost(self, reqid: int) -> None:
        """The last outbound SA of ``reqid`` goes or has gone: ``level: use`` passes again."""
        self._live.discard(reqid)
        self._renew(reqid)

    def _renew(self, reqid: int) -> None:
        changes = [
            change
            for policy_id in tuple(self._by_reqid.get(reqid, ()))
            if policy_id.direction is PolicyDirection.OUT
            for change in self._changes(self._entries[policy_id])
        ]
        _raise(self._carry_out(changes))

    def passes_clear(self, reqid: int) -> bool:
        """Whether packets pass in clear while there is no SA (``level: use``)."""
        return any(self._entries[each].level is Level.USE for each in self._by_reqid.get(reqid, ()))

    def remove_all(self) -> None:
        """Everything of ours that the kernel has, whoever knows of it."""
        found = map(Policy.decode, self._kernel.dump(dump_policies()))
        self._kernel.execute([_delete(key_of(p)) for p in found if owned(p)])

    def _changes(self, spec: PolicySpec) -> list[tuple[Message, PolicySpec, Policy]]:
        """What has to be told to the kernel, of which it has some already."""
        known_to = spec.level is not Level.USE or spec.reqid in self._live
        ends = self._ends.get(spec.reqid) if spec.reqid and known_to else None
        wanted = {key_of(policy): policy for policy in kernel_policies(spec, ends)}
        known = self._pieces.get(spec.id, {})
        changes = []
        for key, policy in wanted.items():
            before = known.get(key)
            if before is not None and replace(before, index=0) == policy:
                continue
            final = replace(policy, index=before.index if before else self._next_index(policy))
            changes.append((put_policy(final, update=key in self._owners), spec, final))
        changes += [(_delete(key), spec, known[key]) for key in known.keys() - wanted.keys()]
        self._leave(spec.id)
        self._enter(spec)
        for key in wanted:
            if key in known:
                self._own(spec.id, known[key])
            elif key in self._owners:
                self._owners[key] = spec.id
        return changes

    def _carry_out(self, changes: Sequence[tuple[Message, PolicySpec, Policy]]) -> list[str]:
        troubles = []
        results = self._kernel.execute([message for message, _, _ in changes])
        for (message, spec, policy), error in zip(changes, results, strict=True):
            key = key_of(policy)
            if message.kind == Msg.DELPOLICY:
                self._owners.pop(key, None)
            elif error is None:
                self._own(spec.id, policy)
            else:
                troubles.append(f"{policy_title(spec)}: {policy_cause(error)}")
        return troubles

    def _uninstall(self, keys: Iterable[Key]) -> list[str]:
        """Remove policies that no other entry of ours has taken over."""
        mine = [key for key in keys if self._owners.get(key, False) is None]
        results = self._kernel.execute([_delete(key) for key in mine])
        troubles = []
        for key, error in zip(mine, results, strict=True):
            del self._owners[key]
            if error is not None and error.number not in (errno.ENOENT, errno.ESRCH):
                troubles.append(f"policy cannot be deleted: {error}")
        return troubles

    def _enter(self, spec: PolicySpec) -> None:
        self._entries[spec.id] = spec
        self._pieces.setdefault(spec.id, {})
        if spec.reqid:
            self._by_reqid.setdefault(spec.reqid, set()).add(spec.id)

    def _own(self, policy_id: PolicyId, policy: Policy) -> None:
        self._owners[key_of(policy)] = policy_id
        self._pieces[policy_id][key_of(policy)] = policy

    def _leave(self, policy_id: PolicyId) -> None:
        """Forget an entry; its policies are nobody's then."""
        spec = self._entries.pop(policy_id, None)
        if spec is None:
            return
        if spec.reqid:
            members = self._by_reqid[spec.reqid]
            members.discard(policy_id)
            if not members:
                del self._by_reqid[spec.reqid]
        for key in self._pieces.pop(policy_id):
            if self._owners.get(key) == policy_id:
                self._owners[key] = None

    def _next_index(self, policy: Policy) -> int:
        """One of our range that nobody has; the lowest bits are the direction."""
        self._index += 1
        return self._index << 3 | policy.direction


def _delete(key: Key) -> Message:
    direction, selector, if_id = key
    return delete_policy(selector, direction, if_id=if_id)


def _raise(troubles: Sequence[str]) -> None:
    if troubles:
        more = f", and {len(troubles) - _TOLD} more" if len(troubles) > _TOLD else ""
        raise DataplaneError("; ".join(troubles[:_TOLD]) + more)
