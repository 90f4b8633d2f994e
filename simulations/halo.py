"""Whose rows a block of peers hears in a round, and how it mixes once they lie beside its own.

A shard has rows lo..hi-1 of all.  What it hears from others is its *halo*; own rows and halo together are a
ring of `L` rows, own ones first, on which the same kernels work as on the whole.  A graph of shifts stays
one: each offset finds its rows right before or right after the shard's own, or in a stretch of the halo of
their own, so the halo is made of stretches of neighbours.  For any other graph it is a list of senders.
`n` peers, `m` of them in a shard, `h` rows of halo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Indices

from .kernels import Links

__all__ = ["Halo", "Loan", "bounds", "halo", "loans", "local", "turned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Halo:
    """What a shard hears.   rows: (h,) peers, in the order in which they lie behind its own.

    offsets: of a graph of shifts, on the ring.   senders: otherwise of each of its edges, on the ring.
    edges: the first and last of its edges in the whole graph.
    """

    rows: Indices
    offsets: Indices | None = None
    senders: Indices | None = None
    edges: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """Rows that a shard lends another: `rows` of its own, by place, to lie at `at` in the other's halo.

    first, count: where they are neighbours; `rows` is None then.
    """

    lender: int
    at: int
    count: int
    first: int = 0
    rows: Indices | None = None


def bounds(n: int, shares: Sequence[float], block: int) -> list[int]:
    """Where shards begin and end, (S + 1), in proportion to `shares`; at whole blocks, if there are enough.

    With more shards than peers some are empty.
    """
    ends = np.rint(np.cumsum(shares) / np.sum(shares) * n).astype(np.int64)
    if n >= 2 * block * len(shares):
        ends = np.rint(ends / block).astype(np.int64) * block
    return [0, *ends[:-1].tolist(), n]


def halo(links: Links, lo: int, hi: int, n: int) -> Halo:
    """What rows lo..hi-1 of n hear by `links`."""
    if len(links.starts):
        return _of_edges(links.starts, links.senders, lo, hi)
    return _of_offsets(links.offsets, lo, hi, n)


def _of_offsets(offsets: Indices, lo: int, hi: int, n: int) -> Halo:
    """What rows lo..hi-1 hear where everybody hears those `offsets` places before."""
    m = hi - lo
    if not len(offsets):
        return Halo(rows=np.zeros(0, np.int64), offsets=offsets)
    back = [o for o in offsets.tolist() if o <= min(m, n - o)]
    fore = [n - o for o in offsets.tolist() if o > n - o < m]
    a, b = max(fore, default=0), max(back, default=0)
    far = [o for o in offsets.tolist() if o not in back and n - o not in fore]
    length = m + a + m * len(far) + b
    if length >= n:
        return Halo(rows=np.arange(hi, hi + n - m) % n, offsets=offsets)
    stretches = [np.arange(hi, hi + a), *(np.arange(lo - o, hi - o) for o in far), np.arange(lo - b, lo)]
    # Where a stretch that begins p places into the ring is heard from: p places on, so L - p places before.
    place = {o: m + a + m * k for k, o in enumerate(far)}
    ring = [
        length - place[o] if o in place else o if o in back else length - (n - o) for o in offsets.tolist()
    ]
    return Halo(rows=np.concatenate(stretches) % n, offsets=np.array(ring, np.int64))


def _of_edges(starts: Indices, senders: NDArray[np.integer], lo: int, hi: int) -> Halo:
    """What rows lo..hi-1 hear on a graph of edges, by receiver: those of i are starts[i]..starts[i + 1]-1."""
    first, last = int(starts[lo]), int(starts[hi])
    heard = np.asarray(senders[first:last], np.int64)
    is_own = (heard >= lo) & (heard < hi)
    others = np.unique(heard[~is_own])
    ring = np.where(is_own, heard - lo, hi - lo + np.searchsorted(others, heard))
    return Halo(rows=others, senders=ring, edges=(first, last))


def local(links: Links, heard: Halo, lo: int, hi: int) -> Links:
    """The links of rows lo..hi-1 on their ring.   links: those of all."""
    own = links.own if len(links.own) == 1 else links.own[lo:hi]
    if heard.senders is None:
        offsets = links.offsets if heard.offsets is None else heard.offsets
        return links._replace(own=own, offsets=offsets)
    first, last = heard.edges
    return links._replace(
        own=own,
        starts=links.starts[lo : hi + 1] - first,
        senders=heard.senders.astype(np.int32),
        weights=links.weights[first:last],
    )


def turned(links: Links, shift: int, length: int) -> Links:
    """The same links where the ring of `length` rows begins with the last `shift` of the halo."""
    if not shift:
        return links
    own = links.own if len(links.own) == 1 else np.concatenate([np.zeros(shift, np.float32), links.own])
    if not len(links.starts):
        return links._replace(own=own)
    return links._replace(
        own=own,
        starts=np.concatenate([np.zeros(shift, np.int64), links.starts]),
        senders=((links.senders + shift) % length).astype(np.int32),
    )


def loans(heard: Halo, edges: Sequence[int], most: int) -> list[Loan]:
    """Who lends what to fill `heard`, at most `most` rows at a time.   edges: (S + 1,) where shards begin."""
    rows = heard.rows
    if not len(rows):
        return []
    lenders = np.searchsorted(np.asarray(edges), rows, side="right") - 1
    breaks = lenders[1:] != lenders[:-1]
    if heard.senders is None:
        breaks = breaks | (rows[1:] != rows[:-1] + 1)
    cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
    found = []
    for begin, end in pairwise(cuts):
        for at in range(begin, end, most):
            some = rows[at : min(at + most, end)] - edges[lenders[at]]
            is_stretch = len(some) == some[-1] - some[0] + 1
            found.append(
                Loan(
                    lender=int(lenders[at]),
                    at=at,
                    count=len(some),
                    first=int(some[0]),
                    rows=None if is_stretch else some,
                )
            )
    return found
