"""A very large population on clocks of its own: asynchronous push-sum, scheduled in slots, by fused kernels.

At a tick peer i has trained from z = x / w, takes in the shares that came, adds the step as a peer does
(gossip/push_sum.py), and gives half of (x, w) to one out-neighbour:

    x += sum of shares;  w += their weights;  x += min(w0, 2 w) (fit(z) - z);  x /= 2;  w /= 2;  send (x, w)

When is slots.py's to say.  What a share holds lies in a row of `shares` until it is taken in, so mass is
always the sum over peers and shares.  Halves are exact in floating point; sums of weights are float64.
Source: Kempe, Dobra, Gehrke 2003, push-sum; Ormandi, Hegedus, Jelasity 2013, arXiv:1109.1396, gossip
learning, whose peers merge, learn and push on clocks of their own.

`n` peers, `d` parameters, `r` places for shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn import descent
from p2pfl.learn.schedule import rate_factor
from p2pfl.mass import body_bytes
from p2pfl.run import RunSpec
from p2pfl.schedule import schedule

from .holdings import Holdings
from .kernels import Drill, Kernels, Rows, drill
from .matrix import Gang, own_threads
from .memory import refuse_if_beyond
from .slots import Batch, Course, Schedule

__all__ = ["PushGossip", "Pushes", "expected_places"]

# Ticks that are scheduled at a time: enough to be worth a call, and few enough for the next ones to be
# scheduled while these are carried out.
_TICKS = 2**14
# Parameters of all ticks of a slot from which threads share them: handing on takes some tens of microseconds,
# a tick four with 650 parameters and 28 with 7,850.  At a quarter of it two threads were slower than one.
_SHARED = 2**18
# Peers of a block in sums that depend on the blocks.
_BLOCK = 4096
# What a peer's clock, weights, loss and rows' numbers, and what a share's weight and chain take.
_BYTES_OF_PEER, _BYTES_OF_SHARE = 128, 24
_PASSING_BYTES = 2**29


class Pushes(Protocol):
    """Kernels of asynchronous push-sum: in numpy (slot_calendar.py) or by numba (compiled_pushes.py)."""

    def push(
        self,
        X: Vectors,
        w: Floats,
        shares: Vectors,
        share_w: Floats,
        batch: Batch,
        lo: int,
        hi: int,
        rates: NDArray[np.float32],
        nominal: Floats,
        drill: Drill,
        rows: Rows,
        seed: int,
        losses: NDArray[np.float32],
    ) -> None:
        """Ticks lo..hi-1 of a batch, whole slots of it or parts of one.

        rates: (m,) learning rates.   losses: (m,), written: NaN where training diverged, without a step.
        """
        ...


def expected_places(course: Course) -> int:
    """About how many shares there are at a time: under way, overdue, or waiting for a tick."""
    clock, links, n = course.clocks, course.links, len(course.clocks.fits)
    away = links.least + links.spread / 2 + links.lost / 2**32 * links.overdue + course.width
    training = np.sum(1.0 / clock.fits) * (away + np.mean(clock.fits) / 2)
    closing = n / clock.closing * (away + clock.closing / 2)
    return int(1.2 * max(float(training), closing)) + 1024


class PushGossip:
    """`n` peers in one run.  `step` until `is_over`, a round's time at a time, then `finish`."""

    def __init__(
        self,
        spec: RunSpec,
        holdings: Holdings,
        course: descent.Course,
        theta: NDArray[np.float32],
        *,
        plan: Course,
        timetable: Schedule,
        kernels: Kernels,
        pushes: Pushes,
        threads: int = 0,
    ) -> None:
        """course: of every fit.   theta: (d,), the first model of all.   plan, timetable: when what happens.

        Raises ConfigError when it would not fit in memory.
        """
        n, d = holdings.n, len(theta)
        needed = n * (4 * d + 4 * holdings.width + _BYTES_OF_PEER) + _PASSING_BYTES
        needed += timetable.places * (4 * d + _BYTES_OF_SHARE)
        refuse_if_beyond(needed, f"{n} peers with {d} parameters each, and their shares,")
        self.spec, self.n, self.d = spec, n, d
        self.schedule = schedule(spec)
        self._kernels, self.gang = kernels, Gang(threads or own_threads())
        self.rows = holdings.of(np.arange(n, dtype=np.int32))
        self.nominal = holdings.samples() if spec.run.weights == "samples" else np.ones(n)
        self.w = self.nominal.copy()
        self.held = np.empty((n, d), np.float32)
        np.multiply(self.nominal[:, None], theta, out=self.held, casting="same_kind")
        self.shares = np.empty((timetable.places, d), np.float32)
        self.share_w = np.zeros(timetable.places)
        self.round = 0
        self.ticks = self.events = self.lost = self.bodies = 0
        self.faults = np.zeros(n, np.int32)
        self.losses = np.full(n, np.nan, np.float32)
        self.per_round: list[dict[str, Any]] = []
        self._plan, self._timetable, self._pushes = plan, timetable, pushes
        self._drill, self._optimizer = drill(course), course.optimizer

    # --- driving -------------------------------------------------------------------------------------

    @property
    def kernels(self) -> str:
        """The name of the kernels at work."""
        return self._kernels.name

    @property
    def shards(self) -> int:
        """In how many parts the rows lie: one."""
        return 1

    @property
    def is_over(self) -> bool:
        """Whether every round's time has passed."""
        return self.round >= self.schedule.total

    @property
    def virtual_s(self) -> float:
        """Seconds that have passed."""
        return self._ends_at(self.round) / 1e6

    def step(self) -> None:
        """A round's time.  Raises LearnerError when every fit that ends in it fails."""
        number, stage = self.round, self.schedule.stage(self.round)
        before = self.ticks, self.events, self.lost
        losses = [self._carry_out(batch) for batch in self._batches(self._ends_at(number + 1))]
        self.round += 1
        self.per_round.append(
            {
                "round": number,
                "stage": stage,
                "loss": self._learned(number, losses),
                "at": self.virtual_s,
                "ticks": self.ticks - before[0],
                "events": self.events - before[1],
                "lost": self.lost - before[2],
            }
        )

    def finish(self) -> None:
        """Everybody takes in what has come, and what was under way."""
        for batch in self._batches(1 << 62):
            self._carry_out(batch)
        peers, places = self._timetable.waiting()
        for peer, place in zip(peers.tolist(), places.tolist(), strict=True):
            self.held[peer] += self.shares[place]
            self.w[peer] += self.share_w[place]
        self.share_w[places] = 0

    # --- what came of it -----------------------------------------------------------------------------

    def models(self, peers: NDArray[np.integer]) -> Vectors:
        """The de-biased models of some peers, (m, d) float32."""
        found: Vectors = (self.held[peers] / self.w[peers, None]).astype(np.float32)
        return found

    def mean_model(self) -> Floats:
        """The mean of all models, (d,)."""
        scale = (1 / self.w).astype(np.float32)
        parts = self.gang.each(
            self.n, lambda lo, hi: self._kernels.total(self.held, lo, hi, scale), block=_BLOCK
        )
        return np.asarray(np.sum(parts, axis=0) / self.n)

    def consensus_distance(self, mean: Floats) -> float:
        """The root mean square distance of all models from `mean`."""
        scale = (1 / self.w).astype(np.float32)
        gaps = self.gang.each(
            self.n, lambda lo, hi: self._kernels.spread(self.held, lo, hi, scale, mean), block=_BLOCK
        )
        return math.sqrt(math.fsum(gaps) / self.n)

    def mass(self) -> Mapping[str, float]:
        """The sum of weights, of peers and of shares."""
        in_flight = math.fsum(self.share_w.tolist())
        total, expected = math.fsum(self.w.tolist()) + in_flight, math.fsum(self.nominal.tolist())
        return {"sum": total, "expected": expected, "error": abs(total - expected) / expected}

    def timing(self, wall_s: float) -> dict[str, float]:
        """What a verdict has of clocks and of the network.   wall_s: what the rounds took."""
        return {
            "virtual_s": self.virtual_s,
            "events": self.events,
            "events_per_s": self.events / wall_s,
            "shares_sent": self.bodies,
            "shares_lost": self.lost,
        }

    def judged(self) -> Indices:
        """Peers whose models are the run's: all."""
        return np.arange(self.n)

    def book(self, peers: NDArray[np.integer]) -> list[dict[str, Any]]:
        """What a verdict's rows have of some peers' books."""
        return [
            {"w": float(self.w[i]), "entered": float(self.nominal[i]), "failed_fits": int(self.faults[i])}
            for i in peers.tolist()
        ]

    @property
    def peer_rounds(self) -> int:
        """How often a peer was done with a fit, or only mixed."""
        return self.ticks

    @property
    def failed_fits(self) -> int:
        """How often a fit diverged."""
        return int(self.faults.sum())

    def online_loss(self) -> float | None:
        """The mean training loss over rounds."""
        losses = [said["loss"] for said in self.per_round if said["loss"] is not None]
        return math.fsum(losses) / len(losses) if losses else None

    def bytes_sent(self) -> int:
        """Bytes of all bodies that travelled."""
        return self.bodies * body_bytes(self.d, 0)

    # --- within --------------------------------------------------------------------------------------

    def _ends_at(self, number: int) -> int:
        """When round `number` begins, in microseconds: training rounds take equal times, closing ones too."""
        clock, rounds = self._plan.clocks, self.schedule.training
        if number <= rounds:
            return clock.trained * number // max(1, rounds)
        return clock.trained + (number - rounds) * clock.closing

    def _batches(self, end: int) -> Iterator[Batch]:
        """What happens before `end`.  Several threads schedule the next batch while one is carried out,

        which is safe because a schedule knows no tensor.
        """
        if self.gang.threads == 1:
            while (batch := self._timetable.until(end, _TICKS)) is not None:
                yield batch
            return
        with ThreadPoolExecutor(1) as ahead:
            found = ahead.submit(self._timetable.until, end, _TICKS)
            while (batch := found.result()) is not None:
                found = ahead.submit(self._timetable.until, end, _TICKS)
                yield batch

    def _carry_out(self, batch: Batch) -> NDArray[np.float32]:
        """Let a batch happen.  Returns the losses of its fits, NaN of those that diverged."""
        self._make_room()
        losses = np.zeros(len(batch.peers), np.float32)
        options, trained = self._optimizer, max(1, self._plan.clocks.trained)
        progress = np.minimum(batch.times / trained, 1.0).tolist()
        of_slot = np.array([options.lr * rate_factor(options, p) for p in progress], np.float32)
        rates = np.repeat(of_slot, np.diff(batch.slots))

        def push(lo: int, hi: int) -> None:
            self._pushes.push(
                self.held,
                self.w,
                self.shares,
                self.share_w,
                batch,
                lo,
                hi,
                rates,
                self.nominal,
                self._drill,
                self.rows,
                self.spec.run.seed,
                losses,
            )

        threads = self.gang.threads
        if threads > 1 and len(batch.peers) * self.d >= _SHARED * (len(batch.slots) - 1):
            with ThreadPoolExecutor(threads) as pool:
                for start, end in pairwise(batch.slots.tolist()):
                    bounds = np.linspace(start, end, threads + 1).astype(np.int64).tolist()
                    list(pool.map(push, bounds[:-1], bounds[1:]))
        else:
            push(0, len(batch.peers))
        self.ticks += len(batch.peers)
        self.events += batch.events
        self.lost += batch.lost
        self.bodies += int(np.count_nonzero(batch.out >= 0))
        is_fit = batch.steps > 0
        self.losses[batch.peers[is_fit]] = losses[is_fit]
        np.add.at(self.faults, batch.peers, np.isnan(losses))
        found: NDArray[np.float32] = losses[is_fit]
        return found

    def _make_room(self) -> None:
        more = self._timetable.places - len(self.shares)
        if more > 0:
            refuse_if_beyond(
                4 * self.d * self._timetable.places, f"{self._timetable.places} shares under way"
            )
            self.shares = np.concatenate([self.shares, np.empty((more, self.d), np.float32)])
            self.share_w = np.concatenate([self.share_w, np.zeros(more)])

    def _learned(self, number: int, losses: list[NDArray[np.float32]]) -> float | None:
        found = np.concatenate([np.zeros(0, np.float32), *losses])
        if not len(found):
            return None
        known = found[~np.isnan(found)]
        if not len(known):
            raise LearnerError(f"every fit of round {number} diverged; lower learner.optimizer.lr")
        return float(np.mean(known, dtype=np.float64))
