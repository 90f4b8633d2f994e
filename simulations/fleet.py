"""A very large population: a round is one pass of fused kernels over one matrix, and no peer is an object.

The rounds are those of population.py (fit from the model held, mix what was held in the round before, add the
local step), for the built-in models, push-sum and d-psgd on a perfect network.  Where no batches are drawn
both give the same parameters within 1e-6; batches come from philox here and from a generator a peer there.
Where the models lie is not known here: in one matrix (matrix.py) or in shards of one (shards.py), with the
same bits, because no row depends on who works on it.

`n` peers, `d` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
from .matrix import Matrix, Models
from .routes import Route, route

__all__ = ["Fleet", "nominal", "own_matrix"]

# As p2pfl.gossip.push_sum: the local step moves x by at most this many times w.
_STEP_CAP = 2.0


def nominal(spec: RunSpec, holdings: Holdings) -> Floats:
    """What each peer counts with, (n,)."""
    return holdings.samples() if spec.run.weights == "samples" else np.ones(holdings.n)


def own_matrix(
    spec: RunSpec,
    holdings: Holdings,
    course: Course,
    theta: NDArray[np.float32],
    *,
    kernels: Kernels,
    threads: int = 0,
    available: int | None = None,
) -> Matrix:
    """The rows of a fleet that lies in this process.   threads: 0 for all processors.   available: bytes of
    memory where the kernels work; None is this machine's.

    Raises ConfigError when it would not fit in memory.
    """
    rows, weights = holdings.of(np.arange(holdings.n, dtype=np.int32)), nominal(spec, holdings)
    does, seed = drill(course), spec.run.seed
    return Matrix(rows, weights, theta, does, seed, kernels=kernels, threads=threads, available=available)


class Fleet:
    """`n` peers in one run, all at once.  `step` until `is_over`, then `finish`."""

    def __init__(
        self, spec: RunSpec, holdings: Holdings, course: Course, theta: NDArray[np.float32], matrix: Models
    ) -> None:
        """course: of every fit.   theta: (d,), the first model of all.   matrix: the rows, begun with it."""
        self.spec, self.n, self.d, self.matrix = spec, holdings.n, len(theta), matrix
        self.schedule = schedule(spec)
        self.nominal = nominal(spec, holdings)
        self.w = self.nominal.copy()
        self.round = 0
        self.bodies = 0
        self.faults = np.zeros(self.n, np.int32)
        # Of the last round that trained, by peer.
        self.losses = np.zeros(self.n, np.float32)
        self.per_round: list[dict[str, Any]] = []
        self._mixer, self._optimizer = mixer_of(spec), course.optimizer
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
        before = self._route(number - 1) if number else None
        links, w = (no_links(), self.w) if before is None else self._mixing(before)
        loss: float | None = None
        if stage == "training":
            gain = np.minimum(self.nominal, _STEP_CAP * w).astype(np.float32)
            rate = self._optimizer.lr * rate_factor(self._optimizer, self.schedule.progress(number))
            self.losses = self.matrix.advance(before, links, scale, gain, rate, number)
            loss = self._learned(number)
        else:
            self.matrix.blend(before, links)
        self.w = w
        self.bodies += self._route(number).edges
        self.round += 1
        self.per_round.append({"round": number, "stage": stage, "loss": loss})

    def finish(self) -> None:
        """Absorb the shares of the last round; states in flight count no more."""
        if self._is_share and self.round:
            last = self._route(self.round - 1)
            links, self.w = self._mixing(last)
            self.matrix.blend(last, links)

    # --- what came of it -----------------------------------------------------------------------------

    def models(self, peers: NDArray[np.integer]) -> Vectors:
        """The de-biased models of some peers, (m, d) float32."""
        found: Vectors = (self.matrix.take(peers) / self.w[peers, None]).astype(np.float32)
        return found

    def mean_model(self) -> Floats:
        """The mean of all models, (d,)."""
        return self.matrix.total((1 / self.w).astype(np.float32)) / self.n

    def consensus_distance(self, mean: Floats) -> float:
        """The root mean square distance of all models from their mean."""
        return math.sqrt(self.matrix.spread((1 / self.w).astype(np.float32), mean) / self.n)

    @property
    def kernels(self) -> str:
        """The name of the kernels at work."""
        return self.matrix.kernels

    @property
    def shards(self) -> int:
        """In how many parts the rows lie."""
        return self.matrix.shards

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

    def _mixing(self, taken: Route) -> tuple[Links, Floats]:
        """How what was given on that route is absorbed, and the weights after it."""
        links, w = taken.mix(self.w)
        if taken.is_complete:
            mean = self.matrix.total(np.ones(self.n, np.float32)) / self.n
            links = links._replace(common=mean.astype(np.float32))
        return links, w

    def _route(self, number: int) -> Route:
        options = self.spec.gossip.topology
        key = number if options.is_redrawn else number % topology.period(options, self.n)
        if key not in self._routes:
            if options.is_redrawn:
                self._routes = {k: r for k, r in self._routes.items() if k == number - 1}
            plan = topology.plan(options, number, self.n, self.spec.run.seed)
            self._routes[key] = route(plan, self._mixer)
        return self._routes[key]
