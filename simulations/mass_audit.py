"""Where a network's mass is, worked out from the peers' states alone: the network is not looked at.

In flight is what lies in an outbox and is not covered by the receiver's watermark, or was refused there, and
of what was taken in part the rest.
What is expected is the sum, over living incarnations, of what entered less what was written off.  An
incarnation is dead when its disk is lost, when a neighbour has closed its books on it, or when a neighbour
remembers more of it than it does itself (a restored backup that has yet to notice); what its neighbours have
still to write off is written off here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl import ledger as ledgers
from p2pfl.events import Snapshot
from p2pfl.gossip.links import InEdge, OutEdge

from .machine import Machine

__all__ = ["Books", "MassAudit", "audit", "books_on_disk", "books_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MassAudit:
    """`held` by peers and `in_flight` between them, against what is `expected`: sums of push-sum weights."""

    held: float
    in_flight: float
    expected: float

    @property
    def sum(self) -> float:
        """All the mass there is."""
        return self.held + self.in_flight

    @property
    def error(self) -> float:
        """|sum - expected|, relative to what is expected where that is more than nothing."""
        return abs(self.sum - self.expected) / max(abs(self.expected), 1e-300 if self.expected else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """One peer's own account: what it holds, its edges, and what entered and was written off."""

    name: str
    incarnation: int
    w: float
    out: dict[str, OutEdge]
    into: dict[str, InEdge]
    entered: float
    written_off: float


def audit(accounts: Iterable[Books | None]) -> MassAudit:
    """The mass of the peers with these books; None for one that has none.   O(peers + edges)."""
    books = {b.name: b for b in accounts if b is not None}
    living = {name: b for name, b in books.items() if not _is_dead(b, books)}
    held = math.fsum(b.w for b in living.values())
    flying, expected = [], []
    for mine in living.values():
        expected += [mine.entered, -mine.written_off]
        for name, edge in mine.out.items():
            other = living.get(name)
            if other is not None and edge.incarnation in (0, other.incarnation):
                into = other.into.get(mine.name)
                is_met = into is not None and into.incarnation == mine.incarnation
                known = into if into is not None and is_met else InEdge(absorbed=edge.base)
                flying += [e.w for e in edge.entries if e.seq > known.absorbed or e.seq in known.refused]
                flying += [(1.0 - known.taken[e.seq]) * e.w for e in edge.entries if e.seq in known.taken]
            else:
                into = mine.into.get(name, InEdge())
                expected.append(-(edge.sent_w - into.absorbed_w))
    return MassAudit(held=held, in_flight=math.fsum(flying), expected=math.fsum(expected))


def books_on(machine: Machine) -> Books | None:
    """A simulated peer's books: from memory when its machine is up, from its disk when it is down."""
    if machine.peer is None:
        return None if machine.disk is None else books_on_disk(machine.name, machine.disk)
    state = machine.peer.state
    return Books(
        name=machine.name,
        incarnation=state.incarnation,
        w=state.mass.w,
        out=state.links.out,
        into=state.links.into,
        entered=state.links.entered,
        written_off=state.links.written_off,
    )


def books_on_disk(name: str, snapshot: Snapshot) -> Books:
    """The books in a snapshot.  Raises StoreError when it cannot be read."""
    ledger = ledgers.read(snapshot)[0]
    return Books(
        name=name,
        incarnation=ledger.incarnation,
        w=ledger.w,
        out=ledger.out,
        into=ledger.into,
        entered=ledger.entered,
        written_off=ledger.written_off,
    )


def _is_dead(mine: Books, books: dict[str, Books]) -> bool:
    for other in books.values():
        out, into = other.out.get(mine.name), other.into.get(mine.name)
        if out is None or other is mine:
            continue
        if mine.incarnation in out.retired:
            return True
        if into is not None and into.incarnation == mine.incarnation:
            here = mine.out.get(other.name)
            if into.absorbed > (here.sent if here is not None else 0):
                return True
        if out.incarnation == mine.incarnation:
            there = mine.into.get(other.name)
            settled = (
                there.absorbed if there is not None and there.incarnation == other.incarnation else out.base
            )
            if out.acked > settled:
                return True
    return False
