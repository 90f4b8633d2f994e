"""The network between simulated peers: connections that come and go, and what happens to messages on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.ids import PeerId
from p2pfl.net.link_model import PERFECT, LinkModel, message_rng

__all__ = ["Network", "Partition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """From `start_s` to `end_s` peers reach only those of their own group; who is in none reaches nobody.

    groups: lists of peer numbers.
    """

    start_s: float
    end_s: float
    groups: Sequence[Sequence[int]]

    def separates(self, a: int, b: int, now: float) -> bool:
        """Whether a message between `a` and `b` would have to cross the cut at `now`."""
        return self.start_s <= now < self.end_s and not any(
            a in group and b in group for group in self.groups
        )


class Network:
    """Who is connected to whom, and when a message on a connection arrives.

    Every directed link has its own random stream, so that traffic elsewhere changes nothing on it.
    A connection has a number; what was under way on an earlier one never arrives.
    """

    def __init__(
        self,
        names: Sequence[PeerId],
        *,
        link: LinkModel = PERFECT,
        links: Callable[[int, int], LinkModel] | None = None,
        partitions: Sequence[Partition] = (),
        seed: int = 0,
    ) -> None:
        """names: the peers, by number.   link: every direction, unless `links` (from, to) is there to say."""
        self._names, self._seed = names, seed
        self._between = links or (lambda _from, _to: link)
        self._partitions = tuple(partitions)
        self._rngs: dict[tuple[int, int], np.random.Generator] = {}
        self._floors: dict[tuple[int, int], float] = {}
        self._sessions: dict[tuple[int, int], int] = {}
        self._opened = 0

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The cuts there will be."""
        return self._partitions

    def session(self, a: int, b: int) -> int:
        """The number of the connection between `a` and `b`; 0 when there is none."""
        return self._sessions.get((a, b) if a < b else (b, a), 0)

    def is_cut(self, a: int, b: int, now: float) -> bool:
        """Whether a partition lies between `a` and `b` at `now`."""
        return any(partition.separates(a, b, now) for partition in self._partitions)

    def connect(self, a: int, b: int) -> int:
        """Open a connection; returns its number."""
        self._opened += 1
        self._sessions[(a, b) if a < b else (b, a)] = self._opened
        self._floors.pop((a, b), None)
        self._floors.pop((b, a), None)
        return self._opened

    def disconnect(self, a: int, b: int) -> None:
        """Close the connection, if there is one."""
        self._sessions.pop((a, b) if a < b else (b, a), None)

    def connected_to(self, a: int) -> list[int]:
        """The peers that `a` has a connection to, ascending."""
        return sorted(y if x == a else x for x, y in self._sessions if a in (x, y))

    def last_arrival(self, a: int, b: int) -> float:
        """When the last message under way from `a` to `b` in order arrives; 0 when there was none."""
        return self._floors.get((a, b), 0.0)

    def arrivals(self, a: int, b: int, now: float, size_bytes: int) -> tuple[float, ...]:
        """When each copy of a message from `a` to `b` arrives: none when it is lost, two when duplicated."""
        model = self._between(a, b)
        floor = self._floors.get((a, b), 0.0)
        if (
            not (model.loss or model.duplication or model.reorder)
            and model.latency_s[0] == model.latency_s[1]
        ):
            # Nothing is left to chance, so nothing is drawn.
            time = max(floor, now + model.latency_s[0] + model.transfer_s(size_bytes))
            self._floors[(a, b)] = time
            return (time,)
        rng = self._rngs.get((a, b))
        if rng is None:
            rng = self._rngs[(a, b)] = message_rng(self._seed, self._names[a], self._names[b], 0)
        times, self._floors[(a, b)] = model.arrivals(rng, now=now, floor=floor, size_bytes=size_bytes)
        return times
