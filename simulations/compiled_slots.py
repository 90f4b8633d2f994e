"""A schedule of slots, compiled by numba; see slots.py.

The schedule is a wheel: `reach` buckets, and what happens in slot s is in bucket s mod reach, as a chain from
`bucket[b]` on.  Entry i < n of a chain is peer i's next tick, entry n + p the share in place p.  An entry of
a later turn of the wheel stays where it is.  What is known of a peer, or of a share, lies side by side in one
row, because rows come in no order and each costs a look at memory.
It makes the same batches as slot_calendar.py, to the places of shares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from p2pfl.learn.philox import PUSH, key_of

from .compiled_fits import block
from .slots import Batch, Clocks, Contacts, Course, Links, Numbers

__all__ = ["Wheel"]

# Times are whole numbers; nothing here may be rounded otherwise than it is written.
_EXACT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_PUSH, _HALF = PUSH, np.uint64(32)
# Buckets of a wheel: most things happen within so many slots, others stay for further turns.
_REACH = 4096
# Entries of `State.counts`: the next slot, entries in buckets, free places, shares that wait at peers.
_SLOT, _LEFT, _FREE, _WAITING = range(4)
# Of a peer's row: its next tick, the steps that end then, the first time down not left behind, how many ticks
# there were, the first and the last share that waits, the next entry of its bucket.
_WHEN, _STEPS, _AT, _NUMBER, _HEAD, _TAIL, _CHAIN, _PEER = range(8)
# Of a share's row: when it comes, the next entry of its bucket, (sender, the sender's tick) as one word, whom
# it comes to, the share that waits behind it.
_DUE, _LINK, _ORDER, _WHOSE, _AFTER, _SHARE = range(6)
_PEER_BITS = 24
_PEER_MASK = 2**_PEER_BITS - 1


class State(NamedTuple):
    """Where a wheel is.   bucket: (reach,).   peers: (n, 8).   shares: (r, 6).   free: (r,) places, the last
    is taken first.
    """

    counts: Any
    bucket: Any
    peers: Any
    shares: Any
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


def _begin(state: State, i: int, begin: int, clocks: Clocks, width: int) -> None:
    """Work of peer i begins; enter its next tick.  As slots.next_ticks."""
    me = state.peers[i]
    at, last = me[_AT], clocks.down_first[i + 1] if len(clocks.down) else 0
    while True:
        end, steps = begin + clocks.fits[i], np.int64(clocks.steps[i])
        if end > clocks.trained:
            end, steps = max(begin, clocks.trained) + clocks.closing, np.int64(0)
        if at >= last or clocks.down[at, 0] > end:
            break
        begin = max(begin, clocks.down[at, 1])
        at += 1
    me[_AT] = at
    if end <= clocks.ends:
        b = end // width % len(state.bucket)
        me[_WHEN], me[_STEPS], me[_CHAIN] = end, steps, state.bucket[b]
        state.bucket[b] = i
        state.counts[_LEFT] += 1


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
    number, n, time = state.peers[i, _NUMBER], contacts.n, state.peers[i, _WHEN]
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
    is_refused = w2 < np.uint64(links.lost) or (len(clocks.down) > 0 and _is_down_c(clocks, target, due))
    if is_refused:
        target, due = i, time + links.overdue
    state.counts[_FREE] -= 1
    place = state.free[state.counts[_FREE]]
    b = due // width % len(state.bucket)
    share = state.shares[place]
    share[_DUE], share[_LINK], share[_WHOSE] = due, state.bucket[b], target
    share[_ORDER] = np.int64(i) << 32 | number
    state.bucket[b] = n + place
    state.counts[_LEFT] += 1
    return place, is_refused


_send_c = numba.njit(**_EXACT)(_send)


def _arrive(state: State, place: int) -> None:
    who = state.peers[state.shares[place, _WHOSE]]
    state.shares[place, _AFTER] = -1
    if who[_HEAD] < 0:
        who[_HEAD] = place
    else:
        state.shares[who[_TAIL], _AFTER] = place
    who[_TAIL] = place
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
    peers, shares = np.empty(n, np.int64), np.empty(len(state.free), np.int64)
    keys, orders = np.empty(len(state.free), np.int64), np.empty(len(state.free), np.int64)
    while state.counts[_LEFT] > 0 and ticks < most:
        slot = state.counts[_SLOT]
        begins = slot * width
        if begins >= time:
            break
        b, m, s = slot % reach, 0, 0
        # What is due leaves the bucket: ticks as (time, peer), shares as their places.
        entry, kept = state.bucket[b], np.int64(-1)
        while entry >= 0:
            if entry < n:
                me = state.peers[entry]
                later = me[_CHAIN]
                if me[_WHEN] < begins + width:
                    peers[m] = (me[_WHEN] - begins) << _PEER_BITS | entry
                    m += 1
                else:
                    me[_CHAIN] = kept
                    kept = entry
            else:
                share = state.shares[entry - n]
                later = share[_LINK]
                if share[_DUE] < begins + width:
                    shares[s] = entry - n
                    keys[s] = (share[_DUE] - begins) << _PEER_BITS | share[_WHOSE]
                    orders[s] = share[_ORDER]
                    s += 1
                else:
                    share[_LINK] = kept
                    kept = entry
            entry = later
        state.bucket[b] = kept
        if m == 0 and s == 0:
            state.counts[_SLOT] += 1
            continue
        is_full = (
            ticks + m > len(page.peers)
            or slots + 1 >= len(page.slots)
            or taken + state.counts[_WAITING] + s > len(page.places)
        )
        is_short = m > state.counts[_FREE]
        if (is_full and ticks > 0) or is_short:
            for a in range(m):
                i = peers[a] & _PEER_MASK
                state.peers[i, _CHAIN] = state.bucket[b]
                state.bucket[b] = i
            for a in range(s):
                state.shares[shares[a], _LINK] = state.bucket[b]
                state.bucket[b] = n + shares[a]
            return slots, ticks, taken, events, refused, is_short
        state.counts[_LEFT] -= m + s
        peers[:m].sort()
        order = _settle_c(keys[:s], orders[:s])
        done, at = ticks, 0
        for a in range(m):
            i = peers[a] & _PEER_MASK
            me = state.peers[i]
            # Shares up to this time are with their receivers; those of this very time are not.
            while at < s and keys[order[at]] >> _PEER_BITS < peers[a] >> _PEER_BITS:
                _arrive_c(state, shares[order[at]])
                at += 1
            page.peers[ticks], page.numbers[ticks], page.steps[ticks] = i, me[_NUMBER], me[_STEPS]
            place = me[_HEAD]
            while place >= 0:
                page.places[taken] = place
                taken += 1
                state.counts[_WAITING] -= 1
                place = state.shares[place, _AFTER]
            me[_HEAD] = -1
            page.out[ticks], was_refused = _send_c(state, i, clocks, contacts, links, width, k0, k1)
            refused += was_refused
            me[_NUMBER] += 1
            ticks += 1
            page.first[ticks] = taken
            _begin_c(state, i, me[_WHEN], clocks, width)
        while at < s:
            _arrive_c(state, shares[order[at]])
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
            bucket=np.full(_REACH, -1, np.int64),
            peers=np.zeros((n, _PEER), np.int64),
            shares=np.zeros((places, _SHARE), np.int64),
            free=np.arange(places - 1, -1, -1, dtype=np.int32),
        )
        self._state.peers[:, _AT] = clocks.down_first[:-1]
        self._state.peers[:, _HEAD] = -1
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
        for i in np.flatnonzero(state.peers[:, _HEAD] >= 0).tolist():
            place = int(state.peers[i, _HEAD])
            while place >= 0:
                peers.append(i)
                places.append(place)
                place = int(state.shares[place, _AFTER])
        return np.array(peers, np.int32), np.array(places, np.int32)

    def _grow(self, more: int) -> None:
        state = self._state
        fresh = np.arange(self.places + more - 1, self.places - 1, -1, dtype=np.int32)
        free = np.concatenate([fresh, state.free[: state.counts[_FREE]]])
        self.places += more
        state.counts[_FREE] += more
        self._state = state._replace(
            shares=np.concatenate([state.shares, np.zeros((more, _SHARE), np.int64)]),
            free=np.concatenate([free, np.zeros(self.places - len(free), np.int32)]),
        )
