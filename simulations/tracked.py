"""Push-pull's part of a population: the models that are pulled, beside the trackers that are pushed.

`n` peers, `d` parameters.  The trackers are the numerators of the population's push-sum state.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.gossip import push_pull
from p2pfl.gossip.mixing import Indices, Vectors
from p2pfl.gossip.push_pull import PushPullState
from p2pfl.gossip.push_sum import PushSumState

from .inflow import Inflow

__all__ = ["Tracked"]


@dataclass(slots=True)
class Tracked:
    """All (n, d) float32: x the models, g the gradients tracked last, sent the models of the last round."""

    x: Vectors
    g: Vectors
    sent: Vectors

    @staticmethod
    def of(theta: Vectors, n: int) -> Tracked:
        """N peers that begin at `theta`, (d,)."""
        models = np.tile(theta, (n, 1))
        return Tracked(models, np.zeros_like(models), models.copy())

    def pull(self, peers: Indices, into: Sequence[Inflow]) -> None:
        """Average the models of `peers` with those they heard."""
        for inflow in into:
            those = peers[inflow.receivers]
            heard = [self.sent[senders] for senders in inflow.senders.T]
            self.x[those] = push_pull.pull(self.x[those], heard, np.zeros(len(those), bool))

    def step(self, peers: Indices, pushed: PushSumState, moved: Vectors, failed: Collection[int]) -> None:
        """Track how far the fits of `peers` moved, (len(peers), d); `pushed`, their trackers, is written.

        failed: positions among `peers` whose fit came to nothing: they only mix.
        """
        done = np.array([at for at in range(len(peers)) if at not in failed], np.int64)
        those = peers[done]
        trackers = PushSumState(x=pushed.x[done], w=pushed.w[done], s=pushed.s[done])
        after = push_pull.step(PushPullState(x=self.x[those], g=self.g[those], pushed=trackers), -moved[done])
        self.x[those], self.g[those], pushed.x[done] = after.x, after.g, after.pushed.x
