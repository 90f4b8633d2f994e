"""Which worker takes which job next, where jobs and workers are unequal and nobody knows by how much before.

Theory of operation.  What a job takes at a worker is guessed from its size, and the guess is corrected by
every job that ends (`CostModel`).  Whenever a worker is free, all jobs that nobody has are planned by these
guesses: the longest first, each at the worker that would be done with it earliest, busy ones included.  The
free worker begins with the longest that it is given; one that is given none waits, because a faster worker
will be free in time.  What was planned is forgotten at the next event.  Some free worker always begins while
nobody is at work, since then the longest job goes to one.

Sources: Graham 1969, "Bounds on multiprocessing timing anomalies" (longest first); Gonzalez, Ibarra, Sahni
1977, "Bounds for LPT schedules on uniform processors" (earliest completion); the online fit of costs to what
was seen is Pollen's, Sani et al. 2023, arXiv:2306.17453, which places clients on GPUs so.
`f` sizes of a job, `J` jobs, `W` workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.gossip.mixing import Floats

__all__ = ["Balancer", "CostModel", "Job"]

# Standard deviations of log seconds that are believed before anything was seen: of the scale, which is not
# known at all; of the power with which each size enters, about 1; of what a kind adds beside its sizes; of a
# worker's speed, a factor of 4; and of one and the same job done twice.
_OF_SCALE, _OF_POWER, _OF_KIND, _OF_SPEED, _OF_NOISE = 10.0, 0.3, 1.0, 1.4, 0.1
# Seconds below which a clock says nothing.
_LEAST_S = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known of a job before.   sizes: (f,), positive; seconds grow about in proportion to each.

    kind: jobs of one kind differ by their sizes alone.
    """

    sizes: tuple[float, ...] = ()
    kind: str = ""


class CostModel:
    """Seconds of jobs at workers, learned from those that have ended.

    log seconds = scale + sum of power_k log size_k + kind - speed, by Bayesian linear regression.  Before
    anything was seen it predicts the product of the sizes.   O((f + kinds + W)^3) a prediction.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        """jobs: all that will be asked about, with equally many sizes."""
        kinds = {kind: at for at, kind in enumerate(dict.fromkeys(job.kind for job in jobs))}
        f = len(jobs[0].sizes) if jobs else 0
        self._workers = workers
        self._rows = np.zeros((len(jobs), 1 + f + len(kinds)))
        for row, job in zip(self._rows, jobs, strict=True):
            row[0], row[1 : 1 + f], row[1 + f + kinds[job.kind]] = 1.0, np.log(job.sizes), 1.0
        doubt = [_OF_SCALE, *[_OF_POWER] * f, *[_OF_KIND] * len(kinds), *[_OF_SPEED] * workers]
        mean = np.zeros(len(doubt))
        mean[1 : 1 + f] = 1.0
        precision = 1.0 / np.square(doubt)
        self._left, self._right = np.diag(precision), precision * mean

    def learn(self, job: int, worker: int, seconds: float) -> None:
        """Job number `job` took `seconds` at `worker`."""
        row = self._row(job, worker)
        self._left += np.outer(row, row) / _OF_NOISE**2
        self._right += row * (math.log(max(seconds, _LEAST_S)) / _OF_NOISE**2)

    def seconds(self) -> Floats:
        """What each job is expected to take at each worker, (J, W)."""
        beliefs = np.linalg.solve(self._left, self._right)
        known = self._rows.shape[1]
        logs = (self._rows @ beliefs[:known])[:, None] - beliefs[known:][None, :]
        found: Floats = np.exp(np.clip(logs, -50.0, 50.0))
        return found

    def _row(self, job: int, worker: int) -> Floats:
        speeds = np.zeros(self._workers)
        speeds[worker] = -1.0
        return np.concatenate([self._rows[job], speeds])


class Balancer:
    """Hands jobs to workers as they become free, and learns from how long they take."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        """No job is taken yet, and every worker is free."""
        self._model = CostModel(jobs, workers)
        self._left = set(range(len(jobs)))
        # Of workers that are busy: the job, and when it was begun.
        self._busy: dict[int, tuple[int, float]] = {}
        self._workers = workers

    @property
    def is_empty(self) -> bool:
        """Whether every job was taken."""
        return not self._left

    def take(self, worker: int, now: float) -> int | None:
        """The job that `worker`, who is free, begins now; None when it is to wait until another one ends."""
        if not self._left:
            return None
        seconds = self._model.seconds()
        free_at = np.full(self._workers, now)
        for other, (job, began) in self._busy.items():
            end = began + float(seconds[job, other])
            # Who has overrun what was expected is expected to take as long once more.
            free_at[other] = end if end > now else now + (now - began)
        for job in sorted(self._left, key=lambda job: (-float(seconds[job].min()), job)):
            done_at = free_at + seconds[job]
            chosen = int(np.argmin(done_at))
            if chosen == worker:
                self._left.remove(job)
                self._busy[worker] = (job, now)
                return job
            free_at[chosen] = done_at[chosen]
        return None

    def end(self, worker: int, now: float) -> None:
        """The job of `worker` has ended."""
        job, began = self._busy.pop(worker)
        self._model.learn(job, worker, now - began)
