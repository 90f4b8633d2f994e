"""The invariant of push-pull, worked out from the peers' states alone: the network is not looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl import ledger
from p2pfl.gossip.links import Entry, InEdge, OutEdge
from p2pfl.mass import unpack
from p2pfl.simulations.machine import Machine
from p2pfl.simulations.mass_audit import Books, books_on
from p2pfl.simulations.world import World

__all__ = ["discord"]


@dataclass(frozen=True)
class _Tracker:
    """A peer's part of the sum: from memory when its machine is up, from its disk when it is down."""

    term: int
    y: NDArray[Any]
    g: NDArray[Any]
    pool: ledger.Pool
    books: Books
    is_leaving: bool


def _tracker(machine: Machine) -> _Tracker | None:
    """None where there is no peer yet, or no more."""
    books = books_on(machine)
    if books is None:
        return None
    if machine.peer is not None:
        state = machine.peer.state
        assert state.mass.g is not None
        is_leaving, finished = state.leaving, state.finished
        found = _Tracker(state.mass.term, state.mass.state.x[0], state.mass.g, state.pool, books, is_leaving)
    else:
        assert machine.disk is not None
        known, y, _, pool = ledger.read(machine.disk)
        is_leaving, finished = known.leaving, known.finished
        found = _Tracker(known.term, y, machine.disk.arrays["g"], pool, books, is_leaving)
    return None if finished == "left" else found


def _in_flight(mine: Books, peers: dict[str, Books]) -> Iterator[Entry]:
    """Shares in the outbox of `mine` that no watermark covers, or that were refused."""
    for name, edge in mine.out.items():
        into = peers[name].into.get(mine.name) if name in peers else None
        is_met = into is not None and into.incarnation == mine.incarnation
        known = into if into is not None and is_met else InEdge(absorbed=edge.base)
        yield from (e for e in edge.entries if e.seq > known.absorbed or e.seq in known.refused)


def _is_settled(books: dict[str, Books]) -> bool:
    """Whether every peer knows every other as it is: nothing is still to be written off."""
    if any(
        edge.incarnation and name not in books for mine in books.values() for name, edge in mine.out.items()
    ):
        return False
    return all(_agree(a, b) for a, b in permutations(books.values(), 2))


def _agree(mine: Books, other: Books) -> bool:
    """Whether `other` takes `mine` for no other incarnation, and remembers no more of it than it does."""
    out, into = other.out.get(mine.name, OutEdge()), other.into.get(mine.name, InEdge())
    sent, settled = mine.out.get(other.name, OutEdge()), mine.into.get(other.name, InEdge())
    if mine.incarnation in out.retired or out.incarnation not in (0, mine.incarnation):
        return False
    if into.incarnation == mine.incarnation and into.absorbed > sent.sent:
        return False
    is_met = settled.incarnation == other.incarnation
    return out.incarnation == 0 or out.acked <= (settled.absorbed if is_met else out.base)


def discord(world: World) -> float | None:
    """The largest part of sum(y) - sum(g) within the latest term.

    None while a loss is yet to be noticed, or someone hands over what it has.
    """
    peers = [tracker for machine in world.machines if (tracker := _tracker(machine)) is not None]
    books = {peer.books.name: peer.books for peer in peers}
    if not peers or any(peer.is_leaving for peer in peers) or not _is_settled(books):
        return None
    term = max(peer.term for peer in peers)
    total = np.zeros(len(peers[0].y))
    for peer in peers:
        if peer.term == term:
            total += peer.y.astype(np.float64) - peer.g
        for entry in _in_flight(peer.books, books):
            if entry.header.weights[1] == term:
                body = unpack(peer.pool.get(entry.header.digest), entry.w, 0)
                total += body.x[0, len(total) :]
    return float(np.abs(total).max())
