"""Numpy learners of many sites fitted together: the arithmetic of each is what it would be alone.

`m` sites, `d` parameters, `b` rows a batch.  A small model's fit costs a few numpy calls however many sites
share them; per site there remain its random draws and its part of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.learn.batches import batches
from p2pfl.learn.descent import descend
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.perceptron import Perceptron
from p2pfl.learn.schedule import rate_factor

__all__ = ["Stack"]


class Stack:
    """NumpyLearners of one `course()`, at work in one (m, d) array.

    What a learner keeps between fits is kept here: its momentum, and its rows once they are standardised.
    """

    def __init__(self, learners: Sequence[NumpyLearner]) -> None:
        """Raises LearnerError when the learners' courses differ or one has none."""
        course = learners[0].course()
        if course is None or any(learner.course() != course for learner in learners):
            raise LearnerError("only learners of one model, batch size and optimizer are fitted together")
        self._course = course
        self._net = Perceptron(course.layers, course.batch_size, len(learners))
        self._momentum = np.zeros_like(self._net.theta)
        self._sites = [learner.rows for learner in learners]
        self._x: NDArray[np.float32] | None = None
        self._y = np.concatenate([learner.labels() for learner in learners])
        self._counts = [learner.samples() for learner in learners]

    def fit(
        self,
        parameters: NDArray[np.float32],
        rngs: Sequence[np.random.Generator],
        progress: float,
        statistics: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The parameters after a fit of every site from its row of `parameters`, and the mean losses.

        parameters: (m, d).   rngs: one a site.   progress: the share of training rounds done.   statistics:
        (m, 3k) sums to standardise with; the first that come count.
        returns: (m, d) float32 and (m,) float64, the loss of each step before it.  A site whose training
        diverged has its own parameters back and NaN as loss, and keeps the momentum it had.
        Raises LearnerError when statistics are awaited and do not come.
        """
        course, net, v = self._course, self._net, self._momentum
        if self._x is None:
            self._x = self._rows(statistics)
        starts = np.cumsum([0, *self._counts[:-1]])
        order = np.stack(
            [
                first + batches(count, course.batch_size, course.local_steps, rng)
                for first, count, rng in zip(starts, self._counts, rngs, strict=True)
            ],
            axis=1,
        )
        if course.optimizer.reset:
            v[:] = 0
        before = None if course.optimizer.reset else v.copy()
        net.theta[:] = parameters
        rate = np.float32(course.optimizer.lr * rate_factor(course.optimizer, progress))
        losses = np.mean(
            descend(net, v, course.optimizer, rate, self._x, self._y, order, lambda: False), axis=0
        )
        ended = net.theta.copy()
        lost = ~np.isfinite(ended).all(axis=1)
        ended[lost], losses[lost] = parameters[lost], np.nan
        if before is not None:
            v[lost] = before[lost]
        return ended, losses

    def state(self) -> bytes:
        """The momentum, if it is kept between fits."""
        return b"" if self._course.optimizer.reset else self._momentum.astype("<f4").tobytes()

    def restore(self, state: bytes) -> None:
        """Take back what `state` gave.  Raises LearnerError when it is of others than these."""
        v = self._momentum
        if len(state) != (0 if self._course.optimizer.reset else 4 * v.size):
            raise LearnerError(
                f"the saved state is not that of {len(v)} sites with {v.shape[1]} parameters each; go on with"
                " as many as before"
            )
        if state:
            v[:] = np.frombuffer(state, "<f4").reshape(v.shape)

    def _rows(self, statistics: NDArray[np.float64] | None) -> NDArray[np.float32]:
        for i, rows in enumerate(self._sites):
            if statistics is not None and statistics.shape[1]:
                rows.standardise(statistics[i])
            rows.check_ready()
        whole = np.concatenate([rows.x_train for rows in self._sites])
        self._sites = []
        return whole
