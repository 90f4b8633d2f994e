"""What a hub holds of its edges' features: whole groups of one sender and round, bounded by bytes.

A group is evicted whole, the oldest first, so that what is left of a sender's round is never a biased part of
it.  A sender has its own budget: one that sends much evicts only what it sent itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from p2pfl.ids import PeerId
from p2pfl.knowledge.packets import Features

__all__ = ["Group", "Cache", "put", "without", "fresh", "newest", "taken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What `sender` sent in `round`; `size` is the bytes that it holds in memory."""

    sender: PeerId
    round: int
    features: Features
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Groups in (round, sender) order, one of a kind, at most `most_bytes` of each sender."""

    most_bytes: int
    groups: tuple[Group, ...] = ()

    def bytes_of(self, sender: PeerId) -> int:
        """The bytes held of `sender`."""
        return sum(group.size for group in self.groups if group.sender == sender)

    def round_of(self, sender: PeerId) -> int:
        """The newest round held of `sender`, -1 when nothing is."""
        return max((group.round for group in self.groups if group.sender == sender), default=-1)


def put(cache: Cache, group: Group) -> Cache:
    """`cache` with `group`, which takes the place of one of the same sender and round.

    The sender's oldest groups make room; a group that is larger than the sender's budget is not held.
    """
    others = [g for g in cache.groups if (g.sender, g.round) != (group.sender, group.round)]
    own = sorted((g for g in (*others, group) if g.sender == group.sender), key=lambda g: g.round)
    total = sum(g.size for g in own)
    while total > cache.most_bytes:
        total -= own.pop(0).size
    kept = [g for g in others if g.sender != group.sender] + own
    return replace(cache, groups=tuple(sorted(kept, key=lambda g: (g.round, g.sender))))


def without(cache: Cache, sender: PeerId) -> Cache:
    """`cache` without what `sender` sent."""
    return replace(cache, groups=tuple(group for group in cache.groups if group.sender != sender))


def fresh(cache: Cache, round_: int, *, staleness: int, frozen_from: int | None = None) -> Cache:
    """`cache` without the groups of more than `staleness` rounds before `round_`.

    frozen_from: the version from which extractors no longer change; features of it do not age.
    """
    kept = tuple(
        group
        for group in cache.groups
        if round_ - group.round <= staleness
        or (frozen_from is not None and group.features.version >= frozen_from)
    )
    return replace(cache, groups=kept)


def newest(cache: Cache) -> dict[PeerId, tuple[Features, ...]]:
    """Every cached sample once, as its sender sent it last: by sender, in PeerId order, newest first."""
    found: dict[PeerId, tuple[Features, ...]] = {}
    for sender in sorted({group.sender for group in cache.groups}):
        mine = sorted((g for g in cache.groups if g.sender == sender), key=lambda g: -g.round)
        seen, parts = np.zeros(0, np.uint64), []
        for group in mine:
            is_new = ~np.isin(group.features.ids, seen)
            if is_new.any():
                parts.append(group.features if is_new.all() else taken(group.features, is_new))
                seen = np.union1d(seen, group.features.ids)
        found[sender] = tuple(parts)
    return found


def taken(features: Features, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Features:
    """The samples of `features` where `rows`, (n,) bool, holds."""
    return replace(
        features,
        ids=features.ids[rows],
        hidden=features.hidden[rows],
        scales=None if features.scales is None else features.scales[rows],
        z=features.z[rows],
        labels=features.labels[rows],
    )
