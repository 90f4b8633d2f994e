"""When the peers of an asynchronous population do what: time in slots, and the order within one.

Nobody waits for anybody.  A peer's fit takes its own time; when it is done, at a tick, the peer takes in what
has come since its last tick, adds the step, and sends half of what it holds to one of its out-neighbours.  A
share arrives after a latency.  One that is lost, or finds its receiver down, is its sender's again when the
answer is overdue, and waits there for the next tick like any other: so nothing is ever lost.  A peer that
goes down loses its fit and begins another when it is back.

When things happen does not depend on what is learned, so whoever schedules (slot_calendar.py in numpy, the
wheel of compiled_slots.py by numba) gives batches of ticks, and tensors follow (push_gossip.py).  A slot is
no longer than the least latency and the shortest fit: what is sent in one arrives in a later one, and no peer
has two ticks in one.  So the ticks of a slot do not depend on each other.  They are in the order of (time,
peer), and what comes to a peer is taken in the order of (time, sender, the sender's tick); what comes at the
very time of a tick waits for the next one.

Times are whole microseconds, so that everybody adds them to the same sums.
`n` peers, `m` ticks of a batch, `r` places for shares.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.gossip import topology
from p2pfl.gossip.options import TopologyOptions
from p2pfl.learn.philox import PUSH, START, below, key_of, philox4x32, words

from .churn import ChurnOptions

__all__ = [
    "Batch",
    "Clocks",
    "Contacts",
    "Course",
    "Links",
    "MOST_US",
    "Schedule",
    "clocks",
    "contacts",
    "downtimes",
    "is_down",
    "microseconds",
    "next_ticks",
    "sent",
]

Times = NDArray[np.int64]
Numbers = NDArray[np.int32]

# The end of time, 6 days of it: a peer's number and a time fit one sortable word (24 and 39 bits).
MOST_US = 2**39 - 1
# Keeps the draw of downtimes apart from every other use of a run's seed: "down" in ASCII.
_DOWN = 0x646F776E


class Clocks(NamedTuple):
    """When each peer is at work.

    begins: (n,) its first fit; before 0, so that peers are out of step from the start.   fits: (n,) how long
    one takes.   steps: (n,) how many it has.   closing: how long a tick takes that only mixes.   trained:
    when training is over.   ends: when ticks are.   down_first: (n + 1,) the first of a peer's `down`,
    (k, 2), from when to when; they are ascending and apart.
    """

    begins: Times
    fits: Times
    steps: Numbers
    closing: int
    trained: int
    ends: int
    down_first: Times
    down: Times


class Contacts(NamedTuple):
    """Whom a peer may send to at its tick number t: those of phase t mod `phases`.

    A shift o is peer i + o mod n, `first` has phases + 1 entries; otherwise `values` are peers, and those of
    peer i in phase f begin at first[f n + i].
    """

    n: int
    phases: int
    is_shift: bool
    first: Times
    values: Times


class Links(NamedTuple):
    """What lies between peers.   least, spread: latency.   lost: of 2^32 shares.   overdue: see above."""

    least: int
    spread: int
    lost: int
    overdue: int


class Course(NamedTuple):
    """All that a schedule follows from.   width: of a slot."""

    clocks: Clocks
    contacts: Contacts
    links: Links
    width: int
    seed: int


class Batch(NamedTuple):
    """Ticks of one or several slots, in order.

    slots: (s + 1,) the first tick of each.   times: (s,) when each slot begins.   peers, numbers, steps: (m,)
    whose ticks, its how many-th, the steps of the fit that ends.   out: (m,) the place of the share that is
    sent, -1 without one.   first: (m + 1,) the first of each tick's `places`, the shares that are taken in.
    events: how many ticks and arrivals there were.   lost: shares that did not arrive.
    """

    slots: Times
    times: Times
    peers: Numbers
    numbers: Numbers
    steps: Numbers
    out: Numbers
    first: Times
    places: Numbers
    events: int
    lost: int


class Schedule(Protocol):
    """A schedule on its way."""

    def until(self, time: int, most: int) -> Batch | None:
        """The next slots that begin before `time`, about `most` ticks of them; None when there are none."""
        ...

    def waiting(self) -> tuple[Numbers, Numbers]:
        """(peers, places) of shares that have come and were not taken in; in order.  Ends the schedule."""
        ...

    @property
    def places(self) -> int:
        """How many places there are for shares."""
        ...


def microseconds(seconds: float) -> int:
    """`seconds` as whole microseconds."""
    return round(seconds * 1e6)


def clocks(
    fit_s: NDArray[np.float64],
    *,
    deadline_s: float,
    steps: int,
    rounds: int,
    round_s: float,
    closing_rounds: int,
    closing_us: int,
    down: tuple[Times, Times],
    seed: int,
) -> Clocks:
    """Clocks of peers whose fits take `fit_s`, (n,), or are over at the deadline with fewer `steps`.

    round_s: how long a round of the run is.   closing_us: of one that only mixes.   down: `downtimes`.
    Raises ConfigError when the run is too long, or a fit too short.
    """
    n = len(fit_s)
    whole = np.minimum(fit_s, deadline_s)
    fits = np.rint(whole * 1e6).astype(np.int64)
    # As machine.py: by the deadline so many steps are done; times are rounded.
    done = np.floor(whole / np.maximum(fit_s, 1e-12) * steps + 1e-9).astype(np.int32)
    trained = microseconds(rounds * round_s)
    ends = trained + closing_rounds * closing_us
    if fits.min() < 1:
        raise ConfigError("simulation.fit_s is less than a microsecond for some peers; make it longer")
    if max(ends, int(fits.max())) > MOST_US // 4:
        raise ConfigError(
            f"the run is {ends / 1e6:g} virtual seconds, and slots count {MOST_US // 4 / 1e6:g}; take fewer"
            " rounds or a shorter simulation.fit_s"
        )
    over = words(seed, START, 0, np.arange(n), 1)[:, 0] / 2**32
    return Clocks(
        begins=-np.floor(over * fits).astype(np.int64),
        fits=fits,
        steps=np.where(whole < fit_s, done, steps).astype(np.int32),
        closing=closing_us,
        trained=trained,
        ends=ends,
        down_first=down[0],
        down=down[1],
    )


def downtimes(options: ChurnOptions, n: int, end_s: float, seed: int) -> tuple[Times, Times]:
    """(first, down) as Clocks has them: `crashes` of random peers, as churn.py says."""
    rng = np.random.default_rng([seed, _DOWN])
    count = options.crashes
    last = end_s if options.end_s is None else options.end_s
    peers = rng.integers(n, size=count)
    starts = np.rint(rng.uniform(options.start_s, max(last, options.start_s), count) * 1e6).astype(np.int64)
    ends = starts + np.maximum(1, np.rint(rng.uniform(*options.down_s, count) * 1e6).astype(np.int64))
    order = np.lexsort((starts, peers))
    peers, starts, ends = peers[order], starts[order], ends[order]
    kept: list[tuple[int, int, int]] = []
    # Times down that touch are one.
    for peer, start, end in zip(peers.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if kept and kept[-1][0] == peer and start <= kept[-1][2]:
            kept[-1] = (peer, kept[-1][1], max(end, kept[-1][2]))
        else:
            kept.append((peer, start, end))
    whose = np.array([row[0] for row in kept], np.int64)
    first = np.searchsorted(whose, np.arange(n + 1)).astype(np.int64)
    down = np.array([row[1:] for row in kept], np.int64).reshape(-1, 2)
    return first, down


def contacts(options: TopologyOptions, n: int, seed: int) -> Contacts:
    """The out-neighbours that a topology gives, phase by phase.

    Raises ConfigError for one that is drawn anew every round or has weights of its own.
    """
    if options.is_redrawn:
        raise ConfigError(
            f"gossip.topology {options.kind!r} is drawn anew every round, and peers on their own clocks have"
            ' no rounds in common; use "complete", of which each share takes a random edge'
        )
    graphs = [topology.plan(options, t, n, seed).graph for t in range(topology.period(options, n))]
    if any(graph.is_weighted for graph in graphs):
        raise ConfigError(
            f"gossip.topology {options.kind!r} says what goes along each edge, and here it is always half;"
            ' use "one-peer-exponential" or another without weights'
        )
    is_shift = all(graph.offsets is not None for graph in graphs)
    if is_shift:
        lists = [np.array(graph.offsets, np.int64) for graph in graphs]
        sizes = [len(offsets) for offsets in lists]
    else:
        edges = [graph.edges() for graph in graphs]
        lists = [receivers for _, receivers in edges]
        sizes = [int(size) for senders, _ in edges for size in np.bincount(senders, minlength=n)]
    return Contacts(
        n=n,
        phases=len(graphs),
        is_shift=is_shift,
        first=np.cumsum([0, *sizes]).astype(np.int64),
        values=np.concatenate([np.zeros(0, np.int64), *lists]),
    )


def sent(course: Course, peers: Numbers, numbers: Numbers, times: Times) -> tuple[Times, Times, Times]:
    """What becomes of the shares sent at ticks: (whose they are next, when, whether they were refused).

    Whose is -1 where nothing is sent.   peers, numbers, times: (m,) of the ticks.
    """
    links, who, clock = course.links, course.contacts, course.clocks
    counter = np.zeros((len(peers), 4), np.uint32)
    counter[:, 1], counter[:, 2], counter[:, 3] = peers, numbers, PUSH
    drawn = philox4x32(counter, key_of(course.seed))
    phase = numbers.astype(np.int64) % who.phases
    at = phase if who.is_shift else phase * who.n + peers
    first = who.first[at]
    degree = who.first[at + 1] - first
    values = np.concatenate([who.values, np.zeros(1, np.int64)])
    found = values[first + below(drawn[:, 0], degree)]
    targets = (peers + found) % who.n if who.is_shift else found
    latency = links.least + below(drawn[:, 1], links.spread + 1)
    arrives = times + latency
    is_refused = (drawn[:, 2] < links.lost) | is_down(clock, targets, arrives)
    whose = np.where(is_refused, peers, targets)
    when = np.where(is_refused, times + links.overdue, arrives)
    return np.where(degree > 0, whose, -1), when, is_refused & (degree > 0)


def is_down(clock: Clocks, peers: Times, times: Times) -> NDArray[np.bool_]:
    """Whether each of `peers` is down at its time."""
    if not len(clock.down):
        return np.zeros(len(peers), np.bool_)
    whose = np.repeat(np.arange(len(clock.down_first) - 1), np.diff(clock.down_first))
    keys = whose << 39 | clock.down[:, 0]
    place = np.searchsorted(keys, peers << 39 | times, side="right") - 1
    found: NDArray[np.bool_] = place >= clock.down_first[peers]
    found &= times < clock.down[np.maximum(place, 0), 1]
    return found


def next_ticks(
    clock: Clocks, peers: Numbers, begins: Times, at: Times
) -> tuple[Times, NDArray[np.bool_], Times]:
    """When work that begins at `begins` is done: (times, whether it is a fit, `at` moved on).

    A fit that would end after training, and all that begins later, is a tick that only mixes.   at: (m,) the
    first time down that each has not left behind.
    """
    begin, at = begins.copy(), at.copy()
    fits, last = clock.fits[peers], clock.down_first[peers + 1]
    down = np.concatenate([clock.down, np.full((1, 2), MOST_US, np.int64)])
    while True:
        is_fit = begin + fits <= clock.trained
        end = np.where(is_fit, begin + fits, np.maximum(begin, clock.trained) + clock.closing)
        hit = (at < last) & (down[np.minimum(at, len(clock.down)), 0] <= end)
        if not hit.any():
            return end, is_fit, at
        begin = np.where(hit, np.maximum(begin, down[np.minimum(at, len(clock.down)), 1]), begin)
        at += hit
