"""A very large population: a round is one pass of fused kernels over one matrix, and no peer is an object.

The rounds are those of population.py (fit from the model held, mix what was held in the round before, add the
local step), for the built-in models, push-sum and d-psgd on a perfect network.  Where no batches are drawn
both give the same parameters within 1e-6; batches come from philox here and from a generator a peer there.
Two arrays hold all models, `held` and the one that the next round is written into; they are allocated once.
Blocks of peers go to threads, and no row depends on which.

`n` peers, `d` parameters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2pfl.aggregation import mixer_of
from p2pfl.errors import LearnerError
from p2pfl.gossip import topology
from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn.descent import Course
from p2pfl.learn.schedule import rate_factor
from p2pfl.mass import body_bytes
from p2pfl.run import RunSpec
from p2pfl.schedule import schedule

from .holdings import Holdings
from .kernels import Kernels, Links, drill, no_links
from .memory import refuse_if_beyond
from .routes import Route, route

__all__ = ["Fleet", "Gang", "needed_bytes", "own_threads"]

# Peers that a thread takes at a time, when there are many: 10 MB of d = 650.
_BLOCK = 4096
# As p2pfl.gossip.push_sum: the local step moves x by at most this many times w.
_STEP_CAP = 2.0
# What a peer's number, counts, weights, scale, gain and loss take while they are worked out.
_BYTES_OF_PEER = 64
# What comes and goes: random words, scratch of threads, models that are judged, the interpreter itself.
_PASSING_BYTES = 2**29

_T = TypeVar("_T")


def own_threads() -> int:
    """Threads to use when nobody says: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needed_bytes(n: int, d: int, width: int) -> int:
    """What n peers with d parameters and `width` rows take at most: two buffers, and numbers of rows."""
    return n * (8 * d + 4 * width + _BYTES_OF_PEER) + _PASSING_BYTES


@dataclass(frozen=True, slots=True)
class Gang:
    """Threads that share the rows of a matrix among them."""

    threads: int

    def each(self, n: int, work: Callable[[int, int], _T], *, block: int = 0) -> list[_T]:
        """`work(lo, hi)` for blocks that cover 0..n-1, its answers in their order.

        block: the size of each, for answers that depend on it; otherwise one that keeps all threads at work.
        """
        size = block or min(_BLOCK, max(32, math.ceil(n / (4 * self.threads))))
        starts = range(0, n, size)
        ends = (min(start + size, n) for start in starts)
        if self.threads == 1 or len(starts) == 1:
            return list(map(work, starts, ends))
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, starts, ends))


class Fleet:
    """`n` peers in one run, all at once.  `step` until `is_over`, then `finish`."""

    def __init__(
        self,
        spec: RunSpec,
        holdings: Holdings,
        course: Course,
        theta: NDArray[np.float32],
        *,
        kernels: Kernels,
        threads: int = 0,
        available: int | None = None,
    ) -> None:
        """course: of every fit.   theta: (d,), the first model of all.   threads: 0 for all processors.
        available: bytes of memory where the kernels work; None is this machine's.

        Raises ConfigError when it would not fit in memory.
        """
        n, d = holdings.n, len(theta)
        refuse_if_beyond(needed_bytes(n, d, holdings.width), f"{n} peers with {d} parameters each", available)
        self.spec, self.n, self.d = spec, n, d
        self.schedule = schedule(spec)
        self.kernels, self.gang = kernels, Gang(threads or own_threads())
        self.rows = holdings.of(np.arange(n, dtype=np.int32))
        self.nominal = holdings.samples() if spec.run.weights == "samples" else np.ones(n)
        self.w = self.nominal.copy()
        # Matrices of the kernels: on a GPU they are no numpy arrays.
        self.held: Any = kernels.make(n, d)
        self._next: Any = kernels.make(n, d)
        start = theta.astype(np.float64)
        self.gang.each(n, lambda lo, hi: kernels.fill(self.held, lo, hi, self.nominal, start))
        self.round = 0
        self.bodies = 0
        self.faults = np.zeros(n, np.int32)
        self.losses = np.zeros(n, np.float32)
        self.per_round: list[dict[str, Any]] = []
        self._mixer, self._drill, self._course = mixer_of(spec), drill(course), course
        self._is_share = self._mixer.delivery == "share"
        self._routes: dict[int, Route] = {}

    # --- driving -------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether every round was taken."""
        return self.round >= self.schedule.total

    def step(self) -> None:
        """One round of every peer.  Raises LearnerError when every fit of it fails."""
        number, stage = self.round, self.schedule.stage(self.round)
        scale = (1 / self.w).astype(np.float32)
        links, w = self._mixing(number - 1) if number else (no_links(), self.w)
        loss: float | None = None
        if stage == "training":
            gain = np.minimum(self.nominal, _STEP_CAP * w).astype(np.float32)
            options = self._course.optimizer
            rate = options.lr * rate_factor(options, self.schedule.progress(number))
            X, Y, rows, seed = self.held, self._next, self.rows, self.spec.run.seed
            self.gang.each(
                self.n,
                lambda lo, hi: self.kernels.advance(
                    X, Y, lo, hi, links, scale, gain, self._drill, rows, rate, seed, number, self.losses
                ),
            )
            loss = self._learned(number)
        else:
            self._blend(links)
        self.held, self._next = self._next, self.held
        self.w = w
        self.bodies += self._route(number).edges
        self.round += 1
        self.per_round.append({"round": number, "stage": stage, "loss": loss})

    def finish(self) -> None:
        """Absorb the shares of the last round; states in flight count no more."""
        if self._is_share and self.round:
            links, self.w = self._mixing(self.round - 1)
            self._blend(links)
            self.held, self._next = self._next, self.held

    # --- what came of it -----------------------------------------------------------------------------

    def models(self, peers: NDArray[np.integer]) -> Vectors:
        """The de-biased models of some peers, (m, d) float32."""
        found: Vectors = (self.kernels.take(self.held, peers) / self.w[peers, None]).astype(np.float32)
        return found

    def mean_model(self) -> Floats:
        """The mean of all models, (d,)."""
        return self.mean_of(self.held, self.w)

    def mean_of(self, x: Any, w: Floats) -> Floats:
        """The mean of the models x / w, (d,).   x: (m, d).   w: (m,)."""
        scale = (1 / w).astype(np.float32)
        return self._summed(len(x), lambda lo, hi: self.kernels.total(x, lo, hi, scale)) / len(x)

    def consensus_distance(self, mean: Floats) -> float:
        """The root mean square distance of all models from their mean."""
        return self.distance_of(self.held, self.w, mean)

    def distance_of(self, x: Any, w: Floats, mean: Floats) -> float:
        """The root mean square distance of the models x / w from `mean`."""
        scale = (1 / w).astype(np.float32)
        gaps = self.gang.each(
            len(x), lambda lo, hi: self.kernels.spread(x, lo, hi, scale, mean), block=_BLOCK
        )
        return math.sqrt(math.fsum(gaps) / len(x))

    def judged(self) -> Indices:
        """Peers whose models are the run's: all."""
        return np.arange(self.n)

    def book(self, peers: NDArray[np.integer]) -> list[dict[str, Any]]:
        """What a verdict's rows have of some peers' books."""
        return [
            {
                "w": float(self.w[i]),
                "entered": float(self.nominal[i]),
                "failed_fits": int(self.faults[i]),
            }
            for i in peers.tolist()
        ]

    @property
    def peer_rounds(self) -> int:
        """How often a peer took a round."""
        return self.n * self.round

    @property
    def failed_fits(self) -> int:
        """How often a fit diverged."""
        return int(self.faults.sum())

    def bytes_sent(self) -> int:
        """Bytes of all bodies that travelled."""
        return self.bodies * self.body_bytes()

    def online_loss(self) -> float | None:
        """The mean training loss over peers and rounds."""
        losses = [said["loss"] for said in self.per_round if said["loss"] is not None]
        return math.fsum(losses) / len(losses) if losses else None

    def body_bytes(self) -> int:
        """Bytes of one body that travels."""
        return body_bytes(self.d, 0)

    def mass(self) -> Mapping[str, float] | None:
        """The sum of weights, after `finish`; None where models are states."""
        if not self._is_share:
            return None
        total, expected = math.fsum(self.w.tolist()), math.fsum(self.nominal.tolist())
        return {"sum": total, "expected": expected, "error": abs(total - expected) / expected}

    # --- a round's parts -----------------------------------------------------------------------------

    def _learned(self, number: int) -> float | None:
        """The mean loss of a round's fits; those that failed are counted."""
        has_failed = np.isnan(self.losses)
        if has_failed.all():
            raise LearnerError(f"every fit of round {number} diverged; lower learner.optimizer.lr")
        self.faults += has_failed
        return float(np.mean(self.losses[~has_failed], dtype=np.float64))

    def _blend(self, links: Links) -> None:
        X, Y = self.held, self._next
        self.gang.each(self.n, lambda lo, hi: self.kernels.blend(X, Y, lo, hi, links))

    def _mixing(self, number: int) -> tuple[Links, Floats]:
        """How round `number`'s shares are absorbed, and the weights after it."""
        taken = self._route(number)
        links, w = taken.mix(self.w)
        if taken.is_complete:
            one = np.ones(self.n, np.float32)
            mean = self._summed(self.n, lambda lo, hi: self.kernels.total(self.held, lo, hi, one)) / self.n
            links = links._replace(common=mean.astype(np.float32))
        return links, w

    def _summed(self, m: int, work: Callable[[int, int], Floats]) -> Floats:
        # Blocks of one size, so that the sum has the same bits with any number of threads.
        found: Floats = np.sum(self.gang.each(m, work, block=_BLOCK), axis=0)
        return found

    def _route(self, number: int) -> Route:
        options = self.spec.gossip.topology
        key = number if options.is_redrawn else number % topology.period(options, self.n)
        if key not in self._routes:
            if options.is_redrawn:
                self._routes = {k: r for k, r in self._routes.items() if k == number - 1}
            plan = topology.plan(options, number, self.n, self.spec.run.seed)
            self._routes[key] = route(plan, self._mixer)
        return self._routes[key]
