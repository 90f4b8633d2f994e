"""Asynchronous push-sum told one event at a time, by a queue: what slots are held against."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from fleets import agreement, blobs, course_of
from numpy.typing import NDArray

from p2pfl.gossip.options import TopologyOptions
from p2pfl.learn.descent import descend
from p2pfl.learn.options import OptimizerOptions, PartitionOptions
from p2pfl.learn.perceptron import Perceptron
from p2pfl.learn.philox import PUSH, words
from p2pfl.learn.schedule import rate_factor
from p2pfl.simulations.churn import ChurnOptions
from p2pfl.simulations.holdings import holdings
from p2pfl.simulations.kernels import Drill, Rows, drill
from p2pfl.simulations.plain import Plain, orders
from p2pfl.simulations.push_gossip import Pushes, PushGossip
from p2pfl.simulations.slots import Course, Links, Schedule, clocks, contacts, downtimes

__all__ = ["Gossiper", "Oracle", "course", "gossip", "oracle_of"]


def course(
    n: int,
    *,
    rounds: int = 4,
    closing: int = 2,
    loss: float = 0.2,
    latency: tuple[int, int] = (50_000, 170_000),
    crashes: int = 0,
    topology: dict[str, Any] | None = None,
    fit_s: float | tuple[float, ...] = (1.0, 2.5, 0.7),
    deadline_s: float = 60.0,
    steps: int = 3,
    seed: int = 3,
) -> Course:
    """A schedule's course for n peers; latency in microseconds."""
    fits = fit_s if isinstance(fit_s, tuple) else (fit_s,)
    overdue = 2 * latency[1]
    options = ChurnOptions(crashes=crashes, down_s=(0.1, 2.0), start_s=0.2)
    clock = clocks(
        np.resize(np.array(fits), n),
        deadline_s=deadline_s,
        steps=steps,
        rounds=rounds,
        round_s=1.0,
        closing_rounds=closing,
        closing_us=overdue,
        down=downtimes(options, n, rounds * 1.0, seed),
        seed=seed,
    )
    who = contacts(msgspec.convert(topology or {"kind": "exponential"}, TopologyOptions), n, seed)
    links = Links(latency[0], latency[1] - latency[0], int(loss * 2**32), overdue)
    width = min(latency[0], int(clock.fits.min()), clock.closing)
    return Course(clock, who, links, width, seed)


@dataclass(slots=True)
class Gossiper:
    """One peer.   inbox: shares that have come, in order.   down: from when to when."""

    x: NDArray[np.float32]
    w: float
    nominal: float
    down: list[tuple[int, int]]
    begin: int = 0
    number: int = 0
    inbox: list[tuple[NDArray[np.float32], float]] = field(default_factory=list)

    def is_down(self, time: int) -> bool:
        return any(start <= time < end for start, end in self.down)


class Oracle:
    """`run` it, then look at `peers` and `ticks`: (time, peer, its how many-th, steps, shares taken in)."""

    def __init__(
        self,
        plan: Course,
        theta: NDArray[np.float32],
        rows: Rows,
        drill: Drill,
        optimizer: OptimizerOptions,
        nominal: NDArray[np.float64],
    ) -> None:
        self.plan, self.rows, self.drill, self.optimizer = plan, rows, drill, optimizer
        clock = plan.clocks
        self.peers = [
            Gossiper(
                x=(nominal[i] * theta).astype(np.float32),
                w=float(nominal[i]),
                nominal=float(nominal[i]),
                down=[
                    (int(a), int(b))
                    for a, b in clock.down[clock.down_first[i] : clock.down_first[i + 1]].tolist()
                ],
            )
            for i in range(plan.contacts.n)
        ]
        self.ticks: list[tuple[int, int, int, int, int]] = []
        self.arrivals = 0
        # (time, whether it is an arrival, whose, sender, number, what came)
        self._queue: list[tuple[int, int, int, int, int, Any]] = []

    def run(self) -> None:
        for i, begin in enumerate(self.plan.clocks.begins.tolist()):
            self._begin(i, begin)
        while self._queue:
            time, is_arrival, i, _, _, what = heapq.heappop(self._queue)
            if is_arrival:
                self.arrivals += 1
                self.peers[i].inbox.append(what)
            else:
                self._tick(time, i, what)
        for peer in self.peers:
            self._take_in(peer)

    def _begin(self, i: int, begin: int) -> None:
        peer, clock = self.peers[i], self.plan.clocks
        while True:
            end, is_fit = begin + int(clock.fits[i]), True
            if end > clock.trained:
                end, is_fit = max(begin, clock.trained) + clock.closing, False
            interrupted = [gone for gone in peer.down if gone[1] > begin and gone[0] <= end]
            if not interrupted:
                break
            begin = interrupted[0][1]
        if end <= clock.ends:
            steps = int(clock.steps[i]) if is_fit else 0
            heapq.heappush(self._queue, (end, 0, i, i, peer.number, steps))

    def _tick(self, time: int, i: int, steps: int) -> None:
        peer = self.peers[i]
        z = (peer.x * np.float32(1 / peer.w)).astype(np.float32)
        moved = self._fit(i, z, steps, time) if steps else np.zeros_like(z)
        self.ticks.append((time, i, peer.number, steps, len(peer.inbox)))
        self._take_in(peer)
        peer.x = peer.x + np.float32(min(peer.nominal, 2 * peer.w)) * moved
        self._send(time, i)
        peer.number += 1
        self._begin(i, time)

    def _take_in(self, peer: Gossiper) -> None:
        for x, w in peer.inbox:
            peer.x = peer.x + x
            peer.w += w
        peer.inbox = []

    def _send(self, time: int, i: int) -> None:
        peer, who, links = self.peers[i], self.plan.contacts, self.plan.links
        drawn = [int(word) for word in words(self.plan.seed, PUSH, peer.number, np.array([i]), 4)[0]]
        phase = peer.number % who.phases
        at = phase if who.is_shift else phase * who.n + i
        near = who.values[who.first[at] : who.first[at + 1]].tolist()
        if not near:
            return
        target = near[drawn[0] * len(near) >> 32]
        if who.is_shift:
            target = (i + target) % who.n
        peer.x, peer.w = peer.x / np.float32(2), peer.w / 2
        due = time + links.least + (drawn[1] * (links.spread + 1) >> 32)
        if drawn[2] < links.lost or self.peers[target].is_down(due):
            target, due = i, time + links.overdue
        heapq.heappush(self._queue, (due, 1, target, i, peer.number, (peer.x.copy(), peer.w)))

    def _fit(self, i: int, z: NDArray[np.float32], steps: int, time: int) -> NDArray[np.float32]:
        count = int(self.rows.counts[i])
        batch = min(self.drill.batch_size, count)
        net = Perceptron(tuple(self.drill.layers.tolist()), batch, 1)
        net.theta[0] = z
        seed, number = self.plan.seed, self.peers[i].number
        order = self.rows.table[i][orders(self.rows.ids[[i]], count, batch, steps, seed, number)[:, 0]]
        # The rate is that of the slot's beginning.
        begins = time // self.plan.width * self.plan.width
        progress = min(1.0, begins / max(1, self.plan.clocks.trained))
        rate = np.float32(self.optimizer.lr * rate_factor(self.optimizer, progress))
        plain = OptimizerOptions(momentum=float(self.drill.momentum), weight_decay=float(self.drill.decay))
        descend(
            net,
            np.zeros((1, len(z)), np.float32),
            plain,
            rate,
            self.rows.x,
            self.rows.y,
            order[:, None].astype(np.int64),
            lambda: False,
        )
        moved: NDArray[np.float32] = net.theta[0] - z
        return moved


def gossip(
    plan: Course,
    timetable: Schedule,
    pushes: Pushes,
    *,
    learner: dict[str, Any] | None = None,
    weights: str = "uniform",
    threads: int = 1,
) -> PushGossip:
    """A population on the clocks of `plan`, whose peers have 9 rows of 2 classes, at its beginning."""
    clock = plan.clocks
    run = {
        "rounds": clock.trained // 1_000_000,
        "closing_rounds": (clock.ends - clock.trained) // clock.closing,
        "seed": plan.seed,
        "weights": weights,
    }
    steps = {"local_steps": int(clock.steps.max()), "batch_size": 4, **(learner or {})}
    spec = agreement(plan.contacts.n, learner=steps, run=run)
    course, theta = course_of(spec, blobs())
    options = PartitionOptions(kind="drawn", rows=9, classes=2)
    held = holdings(blobs(), plan.contacts.n, options, plan.seed)
    return PushGossip(
        spec,
        held,
        course,
        theta,
        plan=plan,
        timetable=timetable,
        kernels=Plain(),
        pushes=pushes,
        threads=threads,
    )


def oracle_of(population: PushGossip, plan: Course) -> Oracle:
    """The same, one event at a time, its run over."""
    spec = population.spec
    course, theta = course_of(spec, blobs())
    told = Oracle(plan, theta, population.rows, drill(course), course.optimizer, population.nominal)
    told.run()
    return told
