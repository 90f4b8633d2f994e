"""A schedule of slots, compiled by numba; see slots.py.

The schedule is a wheel: `reach` buckets, and what happens in slot s is in bucket s mod reach, as a chain from
`bucket[b]` over `chain`.  Entry i < n of a chain is peer i's next tick, entry n + p the share in place p.  An
entry of a later turn of the wheel stays where it is.
It makes the same batches as slot_calendar.py, to the places of shares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from p2pfl.learn.philox import PUSH, key_of

from .compiled_fits import block
from .slots import Batch, Clocks, Contacts, Course, Links, Numbers

__all__ = ["Wheel"]

# Times are whole numbers; nothing here may be rounded otherwise than it is written.
_EXACT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_PUSH, _HALF = PUSH, np.uint64(32)
# Buckets of a wheel: most things happen within so many slots, others stay for further turns.
_REACH = 4096
# Entries of `State.counts`.
_SLOT, _LEFT, _FREE, _WAITING = range(4)
_PEER_BITS = 24


class State(NamedTuple):
    """Where a wheel is.   counts: the next slot, entries in buckets, free places, shares that wait at peers.

    number, at, when, is_fit: (n,) of each peer's next tick.   whose, due, order: (r,) of each share: whom it
    comes to, when, and (sender, the sender's tick) as one word.   free: (r,) places, the last first.
    """

    counts: Any
    bucket: Any
    chain: Any
    number: Any
    at: Any
    when: Any
    is_fit: Any
    whose: Any
    due: Any
    order: Any
    after: Any
    head: Any
    tail: Any
    free: Any


class Page(NamedTuple):
    """What a batch is written on; see slots.Batch."""

    slots: Any
    times: Any
    peers: Any
    numbers: Any
    steps: Any
    out: Any
    first: Any
    places: Any


def _enter(state: State, entry: int, slot: int) -> None:
    b = slot % len(state.bucket)
    state.chain[entry] = state.bucket[b]
    state.bucket[b] = entry
    state.counts[_LEFT] += 1


_enter_c = numba.njit(**_EXACT)(_enter)


def _begin(state: State, i: int, begin: int, clocks: Clocks, width: int) -> None:
    """Work of peer i begins; enter its next tick.  As slots.next_ticks."""
    at, last = state.at[i], clocks.down_first[i + 1]
    while True:
        end = begin + clocks.fits[i]
        is_fit = end <= clocks.trained
        if not is_fit:
            end = max(begin, clocks.trained) + clocks.closing
        if at >= last or clocks.down[at, 0] > end:
            break
        begin = max(begin, clocks.down[at, 1])
        at += 1
    state.at[i] = at
    if end <= clocks.ends:
        state.when[i], state.is_fit[i] = end, is_fit
        _enter_c(state, i, end // width)


_begin_c = numba.njit(**_EXACT)(_begin)


def _begin_all(state: State, clocks: Clocks, width: int) -> None:
    for i in range(len(clocks.begins)):
        _begin_c(state, i, clocks.begins[i], clocks, width)


_begin_all_c = numba.njit(**_EXACT)(_begin_all)


def _is_down(clocks: Clocks, i: int, time: int) -> bool:
    lo, hi = clocks.down_first[i], clocks.down_first[i + 1]
    first = lo
    while lo < hi:
        middle = (lo + hi) // 2
        if clocks.down[middle, 0] <= time:
            lo = middle + 1
        else:
            hi = middle
    return bool(lo > first and time < clocks.down[lo - 1, 1])


_is_down_c = numba.njit(**_EXACT)(_is_down)


def _send(
    state: State,
    i: int,
    clocks: Clocks,
    contacts: Contacts,
    links: Links,
    width: int,
    k0: Any,
    k1: Any,
) -> Any:
    """(the place of the share that peer i sends at its tick, -1 without one; whether it was refused)."""
    number, n, time = state.number[i], contacts.n, state.when[i]
    w0, w1, w2, _ = block(np.uint64(0), np.uint64(i), np.uint64(number), np.uint64(_PUSH), k0, k1)
    phase = number % contacts.phases
    at = phase if contacts.is_shift else phase * n + i
    first = contacts.first[at]
    degree = contacts.first[at + 1] - first
    if degree == 0:
        return np.int32(-1), False
    target = contacts.values[first + np.int64((w0 * np.uint64(degree)) >> _HALF)]
    if contacts.is_shift:
        target = (i + target) % n
    due = time + links.least + np.int64((w1 * np.uint64(links.spread + 1)) >> _HALF)
    is_refused = w2 < np.uint64(links.lost) or _is_down_c(clocks, target, due)
    if is_refused:
        target, due = i, time + links.overdue
    state.counts[_FREE] -= 1
    place = state.free[state.counts[_FREE]]
    state.whose[place], state.due[place] = target, due
    state.order[place] = np.int64(i) << 32 | np.int64(number)
    _enter_c(state, n + place, due // width)
    return place, is_refused


_send_c = numba.njit(**_EXACT)(_send)


def _arrive(state: State, place: int) -> None:
    i = state.whose[place]
    state.after[place] = -1
    if state.head[i] < 0:
        state.head[i] = place
    else:
        state.after[state.tail[i]] = place
    state.tail[i] = place
    state.counts[_WAITING] += 1


_arrive_c = numba.njit(**_EXACT)(_arrive)


def _settle(keys: Any, orders: Any) -> Any:
    """What sorts by (key, order), keys being rarely equal."""
    found = np.argsort(keys)
    for a in range(1, len(found)):
        one, b = found[a], a
        while b > 0 and keys[found[b - 1]] == keys[one] and orders[found[b - 1]] > orders[one]:
            found[b] = found[b - 1]
            b -= 1
        found[b] = one
    return found


_settle_c = numba.njit(**_EXACT)(_settle)


def _run(
    state: State,
    page: Page,
    clocks: Clocks,
    contacts: Contacts,
    links: Links,
    width: int,
    k0: Any,
    k1: Any,
    time: int,
    most: int,
) -> Any:
    """Slots that begin before `time`, until about `most` ticks are on the page, or something is full.

    returns: (slots, ticks, places, events, refused, whether there are too few free places for the next slot).
    """
    n, reach = contacts.n, len(state.bucket)
    slots, ticks, taken, events, refused = 0, 0, 0, 0, 0
    page.slots[0], page.first[0] = 0, 0
    peers, shares = np.empty(n, np.int32), np.empty(len(state.free), np.int32)
    keys, orders = np.empty(n, np.int64), np.empty(n, np.int64)
    share_keys, share_orders = np.empty(len(state.free), np.int64), np.empty(len(state.free), np.int64)
    while state.counts[_LEFT] > 0 and ticks < most:
        slot = state.counts[_SLOT]
        begins = slot * width
        if begins >= time:
            break
        b, m, s = slot % reach, 0, 0
        entry = state.bucket[b]
        while entry >= 0:
            if entry < n:
                if state.when[entry] // width == slot:
                    peers[m] = entry
                    m += 1
            elif state.due[entry - n] // width == slot:
                shares[s] = entry - n
                s += 1
            entry = state.chain[entry]
        if m == 0 and s == 0:
            state.counts[_SLOT] += 1
            continue
        is_full = (
            ticks + m > len(page.peers)
            or slots + 1 >= len(page.slots)
            or taken + state.counts[_WAITING] + s > len(page.places)
        )
        if is_full and ticks > 0:
            break
        if m > state.counts[_FREE]:
            return slots, ticks, taken, events, refused, True
        # What is due leaves the bucket.
        entry, kept = state.bucket[b], -1
        while entry >= 0:
            later = state.chain[entry]
            of = state.when[entry] if entry < n else state.due[entry - n]
            if of // width != slot:
                state.chain[entry] = kept
                kept = entry
            entry = later
        state.bucket[b] = kept
        state.counts[_LEFT] -= m + s
        for a in range(m):
            keys[a], orders[a] = (state.when[peers[a]] - begins) << _PEER_BITS | peers[a], 0
        for a in range(s):
            place = shares[a]
            share_keys[a] = (state.due[place] - begins) << _PEER_BITS | state.whose[place]
            share_orders[a] = state.order[place]
        order, share_order = _settle_c(keys[:m], orders[:m]), _settle_c(share_keys[:s], share_orders[:s])
        done, at = ticks, 0
        for a in range(m):
            i = peers[order[a]]
            # Shares up to this time are with their receivers; those of this very time are not.
            while at < s and state.due[shares[share_order[at]]] < state.when[i]:
                _arrive_c(state, shares[share_order[at]])
                at += 1
            page.peers[ticks], page.numbers[ticks] = i, state.number[i]
            page.steps[ticks] = clocks.steps[i] if state.is_fit[i] else 0
            place = state.head[i]
            while place >= 0:
                page.places[taken] = place
                taken += 1
                state.counts[_WAITING] -= 1
                place = state.after[place]
            state.head[i] = -1
            page.out[ticks], was_refused = _send_c(state, i, clocks, contacts, links, width, k0, k1)
            refused += was_refused
            state.number[i] += 1
            ticks += 1
            page.first[ticks] = taken
            _begin_c(state, i, state.when[i], clocks, width)
        while at < s:
            _arrive_c(state, shares[share_order[at]])
            at += 1
        # Whoever takes a place in this slot takes another than what is read in it.
        for a in range(page.first[done], taken):
            state.free[state.counts[_FREE]] = page.places[a]
            state.counts[_FREE] += 1
        events += m + s
        if m:
            page.times[slots] = begins
            slots += 1
            page.slots[slots] = ticks
        state.counts[_SLOT] += 1
    return slots, ticks, taken, events, refused, False


_run_c = numba.njit(**_EXACT)(_run)


class Wheel:
    """The schedule of one run."""

    def __init__(self, course: Course, places: int) -> None:
        """places: for shares, to begin with; there will be more when they are all taken."""
        clocks, n = course.clocks, course.contacts.n
        self.places = places
        self._course = course
        self._key = tuple(np.uint64(word) for word in key_of(course.seed))
        self._state = State(
            counts=np.array([0, 0, places, 0], np.int64),
            bucket=np.full(_REACH, -1, np.int32),
            chain=np.full(n + places, -1, np.int32),
            number=np.zeros(n, np.int32),
            at=clocks.down_first[:-1].copy(),
            when=np.zeros(n, np.int64),
            is_fit=np.zeros(n, np.bool_),
            whose=np.zeros(places, np.int32),
            due=np.zeros(places, np.int64),
            order=np.zeros(places, np.int64),
            after=np.full(places, -1, np.int32),
            head=np.full(n, -1, np.int32),
            tail=np.full(n, -1, np.int32),
            free=np.arange(places - 1, -1, -1, dtype=np.int32),
        )
        _begin_all_c(self._state, clocks, course.width)

    def until(self, time: int, most: int) -> Batch | None:
        """The next slots that begin before `time`, about `most` ticks of them; None when there are none."""
        course, n = self._course, self._course.contacts.n
        room = n + most
        while True:
            page = Page(
                slots=np.empty(room + 1, np.int64),
                times=np.empty(room, np.int64),
                peers=np.empty(room, np.int32),
                numbers=np.empty(room, np.int32),
                steps=np.empty(room, np.int32),
                out=np.empty(room, np.int32),
                first=np.empty(room + 1, np.int64),
                places=np.empty(self.places + room, np.int32),
            )
            slots, ticks, taken, events, lost, is_short = _run_c(
                self._state, page, course.clocks, course.contacts, course.links, course.width, *self._key,
                time, most,
            )  # fmt: skip
            if is_short:
                self._grow(max(n, self.places // 2))
            if events:
                break
            if not is_short:
                return None
        return Batch(
            slots=page.slots[: slots + 1],
            times=page.times[:slots],
            peers=page.peers[:ticks],
            numbers=page.numbers[:ticks],
            steps=page.steps[:ticks],
            out=page.out[:ticks],
            first=page.first[: ticks + 1],
            places=page.places[:taken],
            events=events,
            lost=lost,
        )

    def waiting(self) -> tuple[Numbers, Numbers]:
        """(peers, places) of shares that have come and were not taken in; in order."""
        state = self._state
        peers, places = [], []
        for i in np.flatnonzero(state.head >= 0).tolist():
            place = int(state.head[i])
            while place >= 0:
                peers.append(i)
                places.append(place)
                place = int(state.after[place])
        return np.array(peers, np.int32), np.array(places, np.int32)

    def _grow(self, more: int) -> None:
        state, n = self._state, self._course.contacts.n
        free = int(state.counts[_FREE])
        fresh = np.arange(self.places + more - 1, self.places - 1, -1, dtype=np.int32)
        self.places += more
        state.counts[_FREE] += more

        def longer(column: NDArray[Any], size: int) -> NDArray[Any]:
            found = np.full(size, -1, column.dtype)
            found[: len(column)] = column
            return found

        columns = ("whose", "due", "order", "after")
        kept = {name: longer(getattr(state, name), self.places) for name in columns}
        self._state = state._replace(
            chain=longer(state.chain, n + self.places),
            free=longer(np.concatenate([fresh, state.free[:free]]), self.places),
            **kept,
        )
