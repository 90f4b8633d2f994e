"""A pool of very many peers of whom few are active in a round: only those that have trained have a state.

Every round draws `m` active peers, who mix and train as a fleet of m does (fleet.py).  What they begin with:
`own`, the model that each held when it was last active, the run's first model if it never was; or `handed`,
the model of the peer that had its place in the round before, so that m models go from hand to hand and learn
from everybody's rows.  Either way each peer keeps the model it ended with.
Source of handing over: Takezawa, Stich 2025, "Scalable decentralized learning with teleportation".

`n` peers in the pool, `m` active, `d` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn.descent import Course
from p2pfl.learn.philox import ACTIVE, chosen
from p2pfl.run import RunSpec
from p2pfl.schedule import Schedule, schedule

from .fleet import Fleet, own_matrix
from .holdings import Holdings
from .kernels import Kernels
from .matrix import needed_bytes
from .memory import refuse_if_beyond

__all__ = ["Pool", "Resume"]

Resume = Literal["own", "handed"]


class Pool:
    """`n` peers in one run, some of them at work in each round.  `step` until `is_over`, then `finish`."""

    def __init__(
        self,
        spec: RunSpec,
        holdings: Holdings,
        course: Course,
        theta: NDArray[np.float32],
        *,
        active: int,
        resume: Resume,
        kernels: Kernels,
        threads: int = 0,
    ) -> None:
        """Raises ConfigError when it would not fit in memory."""
        self.n, d = holdings.n, len(theta)
        most = min(self.n, active * schedule(spec).total)
        needed = needed_bytes(active, d, holdings.width) + most * (4 * d + 16) + 4 * self.n
        refuse_if_beyond(needed, f"{self.n} peers, of whom {most} may train, with {d} parameters each")
        # Rows that nobody is active with are never touched, and take no memory.
        self._kept = np.empty((most, d), np.float32)
        self._kept_w = np.ones(most)
        self._faults = np.zeros(most, np.int32)
        self._places = np.full(self.n, -1, np.int32)
        self.trained = 0
        self._theta, self._resume, self._holdings, self._seed = theta, resume, holdings, spec.run.seed
        # What is active now; whose rows they are changes every round.
        self.active: Indices = np.arange(active)
        live = replace(holdings, n=active)
        self._matrix = own_matrix(spec, live, course, theta, kernels=kernels, threads=threads)
        self._live = Fleet(spec, live, course, theta, self._matrix)

    # --- driving -------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether every round was taken."""
        return self._live.is_over

    def step(self) -> None:
        """One round of those that are active in it.  Raises LearnerError when every fit of it fails."""
        live = self._live
        self.active = chosen(self._seed, ACTIVE, live.round, self.n, len(self.active))
        places = self._placed(self.active)
        if self._resume == "own":
            self._matrix.held[:], live.w = self._kept[places], self._kept_w[places]
        self._matrix.rows = self._holdings.of(self.active)
        live.faults[:] = 0
        live.step()
        self._keep(places)
        self._faults[places] += live.faults
        live.per_round[-1]["trained_peers"] = self.trained

    def finish(self) -> None:
        """Absorb what is on its way between those that were active last."""
        if self._resume == "handed":
            self._live.finish()
            self._keep(self._places[self.active])

    # --- what came of it -----------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The rounds taken."""
        return self._live.round

    @property
    def schedule(self) -> Schedule:
        """How many there are of each kind."""
        return self._live.schedule

    @property
    def losses(self) -> NDArray[np.float32]:
        """Those of the last round's fits, (m,), NaN where one failed."""
        return self._live.losses

    @property
    def kernels(self) -> str:
        """The name of the kernels at work."""
        return self._live.kernels

    @property
    def shards(self) -> int:
        """In how many parts the rows of active peers lie: one."""
        return self._live.shards

    @property
    def per_round(self) -> list[dict[str, Any]]:
        """What was measured of each round."""
        return self._live.per_round

    @property
    def peer_rounds(self) -> int:
        """How often a peer took a round."""
        return self._live.peer_rounds

    @property
    def failed_fits(self) -> int:
        """How often a fit diverged."""
        return int(self._faults.sum())

    def judged(self) -> Indices:
        """Peers whose models are the run's: the last active, or, where each has its own, all that trained."""
        if self._resume == "handed" or not self.trained:
            return self.active
        return np.flatnonzero(self._places >= 0)

    def models(self, peers: NDArray[np.integer]) -> Vectors:
        """The models that some peers hold, (m, d): the first one for peers that have not trained."""
        places = self._places[peers]
        found = np.tile(self._theta, (len(peers), 1))
        has_trained = places >= 0
        there = places[has_trained]
        found[has_trained] = self._kept[there] / self._kept_w[there, None]
        return found

    def mean_model(self) -> Floats:
        """The mean of the models that are judged, (d,)."""
        if self._resume == "handed" or not self.trained:
            return self._live.mean_model()
        return self._matrix.total(self._scale(), self._kept[: self.trained]) / self.trained

    def consensus_distance(self, mean: Floats) -> float:
        """The root mean square distance of the models that are judged from their mean."""
        if self._resume == "handed" or not self.trained:
            return self._live.consensus_distance(mean)
        squares = self._matrix.spread(self._scale(), mean, self._kept[: self.trained])
        return math.sqrt(squares / self.trained)

    def book(self, peers: NDArray[np.integer]) -> list[dict[str, Any]]:
        """What a verdict's rows have of some peers' books."""
        places = self._places[peers]
        return [
            {
                "w": float(self._kept_w[at]) if at >= 0 else 1.0,
                "entered": 1.0,
                "failed_fits": int(self._faults[at]) if at >= 0 else 0,
            }
            for at in places.tolist()
        ]

    def online_loss(self) -> float | None:
        """The mean training loss over fits."""
        return self._live.online_loss()

    def bytes_sent(self) -> int:
        """Bytes of the bodies that travelled between active peers, and of models handed on."""
        handed = max(0, self.round - 1) * len(self.active) if self._resume == "handed" else 0
        return self._live.bytes_sent() + handed * self._live.body_bytes()

    def mass(self) -> Mapping[str, float] | None:
        """The sum of weights of those that hold mass; None where models are states."""
        if self._resume == "handed" or self._live.mass() is None:
            return self._live.mass()
        total = math.fsum(self._kept_w[: self.trained].tolist())
        return {"sum": total, "expected": self.trained, "error": abs(total / max(1, self.trained) - 1)}

    # --- who has trained -----------------------------------------------------------------------------

    def _placed(self, peers: Indices) -> NDArray[np.int32]:
        """Where the states of `peers` are; those that are new get one, the first model."""
        fresh = peers[self._places[peers] < 0]
        places = np.arange(self.trained, self.trained + len(fresh), dtype=np.int32)
        self._places[fresh] = places
        self._kept[places] = self._theta
        self.trained += len(fresh)
        return self._places[peers]

    def _keep(self, places: NDArray[np.int32]) -> None:
        self._kept[places], self._kept_w[places] = self._matrix.held, self._live.w

    def _scale(self) -> NDArray[np.float32]:
        """What makes models of the rows that are kept."""
        return (1 / self._kept_w[: self.trained]).astype(np.float32)
