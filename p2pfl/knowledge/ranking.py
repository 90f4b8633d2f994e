"""Which hub serves which edge: without an election, and the same whoever computes it.

Every peer that would be a hub announces a capacity.  An edge ranks the hubs by weighted rendezvous hashing:
with u a hash of (edge, hub, run) in (0, 1) and c the hub's capacity, the one with the largest -c / ln u
comes first, the next is its standby.  -ln u is exponential, so a hub comes first for a share c / sum(c) of
the edges; when a hub goes, only its own edges move, each to its standby; one that comes takes its share from
all, and nobody else moves.   Source: Schindelhauer and Schomaker 2005 (SPAA), the logarithmic method.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import PeerId, RunId

__all__ = ["MAX_CAPACITY", "Capability", "pack_capability", "read_capability", "rank", "tiers"]

# Samples a second, or whatever unit the run agrees on: only ratios count.
MAX_CAPACITY = 1e12
# A capability is three numbers and texts.
_MAX_BYTES = 256
# The hash as a fraction: 52 bits and a half, so that float64 holds it and it is neither 0 nor 1.
_FRACTION_BITS = 52


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a peer announces of itself as a hub.

    capacity: how many edges' worth of work it takes, against other hubs; 0 is no hub.
    model: SHA-256 of the hub model's schema; hubs with one model can mix weights.
    split: SHA-256 of what the extractor gives, its shape and classes; edges use hubs of their own split.
    """

    capacity: float
    model: bytes
    split: bytes


def pack_capability(capability: Capability) -> bytes:
    """`capability` as it is announced.  Raises LocalError on what would be refused."""
    data = encoding.pack({1: float(capability.capacity), 2: capability.model, 3: capability.split})
    try:
        read_capability(data)
    except RemoteError as error:
        raise LocalError(f"this capability would be refused: {error}") from error
    return data


def read_capability(data: bytes) -> Capability:
    """What `data` announces.  Raises RemoteError."""
    document = encoding.unpack(data, "capability", keys=(1, 2, 3), limit=_MAX_BYTES)
    capacity = encoding.number(document[1], "capacity", least=0.0)
    if capacity > MAX_CAPACITY:
        raise RemoteError(f"a capacity of {capacity:g}, the most is {MAX_CAPACITY:g}")
    return Capability(
        capacity=capacity,
        model=encoding.digest(document[2], "hub model"),
        split=encoding.digest(document[3], "split"),
    )


def rank(edge: PeerId, run: RunId, capacities: Mapping[PeerId, float]) -> tuple[PeerId, ...]:
    """The hubs for `edge`, best first: its hub, its standby, and so on.  Those of capacity 0 are left out.

    >>> rank(PeerId("edge"), RunId("00"), {PeerId("a"): 0.0, PeerId("b"): 1.0})
    ('b',)
    """
    scores = {
        hub: -capacity / math.log(_fraction(edge, hub, run))
        for hub, capacity in capacities.items()
        if capacity > 0
    }
    # Of equal scores, which hashes never give, the lower name comes first.
    return tuple(sorted(scores, key=lambda hub: (-scores[hub], hub)))


def tiers(hubs: Mapping[PeerId, Capability]) -> tuple[tuple[PeerId, ...], ...]:
    """The hubs in groups of one model and split, each in PeerId order, by their lowest name.

    Within a group weights can be mixed; across groups only predictions mean the same.
    """
    groups: dict[tuple[bytes, bytes], list[PeerId]] = {}
    for hub in sorted(hubs):
        if hubs[hub].capacity > 0:
            groups.setdefault((hubs[hub].model, hubs[hub].split), []).append(hub)
    return tuple(tuple(group) for group in groups.values())


def _fraction(edge: PeerId, hub: PeerId, run: RunId) -> float:
    # Lengths first: no two triples of names are written alike.
    named = b"".join(
        len(text).to_bytes(2, "big") + text for text in (edge.encode(), hub.encode(), run.encode())
    )
    digest = hashlib.blake2b(named, digest_size=8, person=b"p2pfl hub").digest()
    number = int.from_bytes(digest, "big") >> (64 - _FRACTION_BITS)
    return (number + 0.5) / float(2**_FRACTION_BITS)
