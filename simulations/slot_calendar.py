"""A schedule of slots in numpy: each slot's ticks and arrivals are columns that were put aside for it.

Shares that wait at a peer are a chain: `_next` leads from the place of one to that of the one that came after
it, from `_head[i]` to `_tail[i]`.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from .slots import Batch, Course, Numbers, Times, next_ticks, sent

__all__ = ["Calendar"]

_Columns = tuple[NDArray[np.int64], ...]


class Calendar:
    """The schedule of one run."""

    def __init__(self, course: Course, places: int) -> None:
        """places: for shares, to begin with; there will be more when they are all taken."""
        n = course.contacts.n
        self.places = places
        self._course = course
        self._number = np.zeros(n, np.int32)
        self._at = course.clocks.down_first[:-1].copy()
        # By slot: (peers, times, whether a fit ends) of ticks, (whose, times, places, order) of shares.
        self._ticks: dict[int, list[_Columns]] = {}
        self._shares: dict[int, list[_Columns]] = {}
        self._slots: list[int] = []
        self._head, self._tail = (np.full(n, -1, np.int32) for _ in range(2))
        self._next = np.full(places, -1, np.int32)
        # The last is taken first.
        self._free = np.arange(places - 1, -1, -1, dtype=np.int32)
        self._begin(np.arange(n, dtype=np.int32), course.clocks.begins)

    def until(self, time: int, most: int) -> Batch | None:
        """The next slots that begin before `time`, about `most` ticks of them; None when there are none."""
        slots, times, events, lost, count = [0], [], 0, 0, 0
        parts: list[tuple[Numbers, ...]] = []
        while self._slots and self._slots[0] * self._course.width < time and count < most:
            slot = heapq.heappop(self._slots)
            part, arrived, refused = self._take(slot)
            count += len(part[0])
            events += len(part[0]) + arrived
            lost += refused
            if len(part[0]):
                parts.append(part)
                slots.append(count)
                times.append(slot * self._course.width)
        if not events:
            return None
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [
            np.zeros(0, np.int32) for _ in range(6)
        ]
        peers, numbers, steps, out, sizes, places = columns
        return Batch(
            slots=np.array(slots, np.int64),
            times=np.array(times, np.int64),
            peers=peers,
            numbers=numbers,
            steps=steps,
            out=out,
            first=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)]),
            places=places,
            events=events,
            lost=lost,
        )

    def waiting(self) -> tuple[Numbers, Numbers]:
        """(peers, places) of shares that have come and were not taken in; in order."""
        peers = np.flatnonzero(self._head >= 0).astype(np.int32)
        sizes, places = self._taken(peers)
        return np.repeat(peers, sizes), places

    def _take(self, slot: int) -> tuple[tuple[Numbers, ...], int, int]:
        """A slot's columns (peers, numbers, steps, out, sizes, places), its arrivals, and shares refused."""
        course, n = self._course, self._course.contacts.n
        due = _due(self._ticks, slot, 3)
        order = np.lexsort((due[0], due[1]))
        peers: Numbers = due[0][order].astype(np.int32)
        times, is_fit = due[1][order], due[2][order]
        arrivals = _due(self._shares, slot, 4)
        # What comes before its receiver's tick is taken in by it.
        tick = np.full(n, np.iinfo(np.int64).max)
        tick[peers] = times
        is_early = arrivals[1] < tick[arrivals[0]]
        self._arrive(tuple(column[is_early] for column in arrivals))
        sizes, places = self._taken(peers)
        self._arrive(tuple(column[~is_early] for column in arrivals))
        numbers = self._number[peers]
        self._number[peers] += 1
        steps = np.where(is_fit, course.clocks.steps[peers], 0).astype(np.int32)
        whose, when, is_refused = sent(course, peers, numbers, times)
        out = np.full(len(peers), -1, np.int32)
        gives = np.flatnonzero(whose >= 0)
        out[gives] = self._place(len(gives))
        order_of = peers[gives].astype(np.int64) << 32 | numbers[gives]
        self._put(
            self._shares, when[gives], (whose[gives], when[gives], out[gives].astype(np.int64), order_of)
        )
        self._begin(peers, times)
        # Whoever takes a place in this slot takes another than what is read in it.
        self._free = np.concatenate([self._free, places])
        return (peers, numbers, steps, out, sizes, places), len(arrivals[0]), int(is_refused.sum())

    def _begin(self, peers: Numbers, times: Times) -> None:
        """Work of `peers` begins at `times`; put their next ticks aside."""
        ends, is_fit, self._at[peers] = next_ticks(self._course.clocks, peers, times, self._at[peers])
        goes_on = ends <= self._course.clocks.ends
        columns = (peers.astype(np.int64), ends, is_fit.astype(np.int64))
        self._put(self._ticks, ends[goes_on], tuple(column[goes_on] for column in columns))

    def _put(self, aside: dict[int, list[_Columns]], when: Times, columns: _Columns) -> None:
        slot = when // self._course.width
        order = np.argsort(slot, kind="stable")
        slot = slot[order]
        bounds = np.flatnonzero(np.diff(slot, prepend=-1, append=np.iinfo(np.int64).max))
        for lo, hi in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            number = int(slot[lo])
            if number not in self._ticks and number not in self._shares:
                heapq.heappush(self._slots, number)
            aside.setdefault(number, []).append(tuple(column[order[lo:hi]] for column in columns))

    def _place(self, count: int) -> Numbers:
        """So many free places."""
        if count > len(self._free):
            more = max(self._course.contacts.n, self.places // 2)
            grown = np.arange(self.places + more - 1, self.places - 1, -1, dtype=np.int32)
            self._free = np.concatenate([grown, self._free])
            self._next = np.concatenate([self._next, np.full(more, -1, np.int32)])
            self.places += more
        at = len(self._free) - count
        found, self._free = self._free[at:][::-1], self._free[:at]
        return found

    def _arrive(self, arrivals: _Columns) -> None:
        """Shares join what waits at their receivers, in the order of (time, sender, the sender's tick)."""
        whose, when, places, order_of = arrivals
        if not len(whose):
            return
        order = np.lexsort((order_of, when, whose))
        whose, places = whose[order], places[order].astype(np.int32)
        is_first = np.diff(whose, prepend=-1) != 0
        is_last = np.append(is_first[1:], True)
        self._next[places[~is_last]] = places[1:][~is_last[:-1]]
        self._next[places[is_last]] = -1
        receivers, firsts = whose[is_first], places[is_first]
        is_empty = self._head[receivers] < 0
        self._head[receivers[is_empty]] = firsts[is_empty]
        self._next[self._tail[receivers[~is_empty]]] = firsts[~is_empty]
        self._tail[receivers] = places[is_last]

    def _taken(self, peers: Numbers) -> tuple[Numbers, Numbers]:
        """(how many, their places one peer after the other) of what waits at `peers`; now nothing does."""
        levels = []
        at = self._head[peers]
        self._head[peers] = -1
        while (at >= 0).any():
            levels.append(at)
            at = np.where(at >= 0, self._next[at], -1)
        if not levels:
            return np.zeros(len(peers), np.int32), np.zeros(0, np.int32)
        table = np.stack(levels, axis=1)
        return (table >= 0).sum(axis=1, dtype=np.int32), table[table >= 0]


def _due(aside: dict[int, list[_Columns]], slot: int, width: int) -> _Columns:
    """The columns, so many, that were put aside for a slot."""
    found = aside.pop(slot, [])
    if not found:
        return tuple(np.zeros(0, np.int64) for _ in range(width))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))
