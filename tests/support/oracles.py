"""What the gossip kernels are held against: invariants, the same mathematics with dense matrices, and what it
replaces.

All float64, receiver form x+ = C x, `C[i, j]` what i takes of j.  `n` peers, `d` parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import MixingMatrix
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan

__all__ = [
    "Floats",
    "RobustPushSum",
    "hub_edges",
    "digraph_of",
    "is_column_stochastic",
    "is_row_stochastic",
    "is_doubly_stochastic",
    "is_symmetric",
    "numerators",
    "push_sum_dense",
    "push_sum_lossy",
    "push_sum_robust",
    "sgp_on_quadratic",
    "push_pull_on_quadratic",
]

Floats = NDArray[np.float64]
# A sum of some thousand float64 weights near 1 is off by about 1e-13; a wrong weight by far more.
_TOLERANCE = 1e-9


def hub_edges(n: int) -> tuple[tuple[int, int], ...]:
    """Every peer sends to the next and back to peer 0, so the weight halves along the chain: w_min ~ 2^-n."""
    return tuple((i, j) for i in range(n) for j in sorted({0, min(i + 1, n - 1)} - {i}))


def digraph_of(plan: Plan) -> "nx.DiGraph[int]":
    """The plan's graph as networkx knows it."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(plan.n))
    graph.add_edges_from((i, j) for i, peers in enumerate(plan.out_edges) for j in peers)
    return graph


def is_column_stochastic(W: MixingMatrix) -> bool:
    """Whether no weight is negative and every sender's weights sum to 1."""
    sums = W.own + np.bincount(W.senders, weights=W.weights, minlength=W.n)
    return _is_nonnegative(W) and bool(np.all(np.abs(sums - 1) <= _TOLERANCE))


def is_row_stochastic(W: MixingMatrix) -> bool:
    """Whether no weight is negative and every receiver's weights sum to 1."""
    sums = W.own + np.bincount(W.receivers, weights=W.weights, minlength=W.n)
    return _is_nonnegative(W) and bool(np.all(np.abs(sums - 1) <= _TOLERANCE))


def is_doubly_stochastic(W: MixingMatrix) -> bool:
    """Whether W is row- and column-stochastic."""
    return is_row_stochastic(W) and is_column_stochastic(W)


def is_symmetric(W: MixingMatrix) -> bool:
    """Whether every edge has its reverse, of the same weight.  O(m log m)."""
    there = np.lexsort((W.receivers, W.senders))
    back = np.lexsort((W.senders, W.receivers))
    return (
        np.array_equal(W.senders[there], W.receivers[back])
        and np.array_equal(W.receivers[there], W.senders[back])
        and bool(np.all(np.abs(W.weights[there] - W.weights[back]) <= _TOLERANCE))
    )


def _is_nonnegative(W: MixingMatrix) -> bool:
    return bool(np.all(W.own >= -_TOLERANCE)) and bool(np.all(W.weights >= 0))


def numerators(states: Sequence[PushSumState]) -> Floats:
    """The sum of all x in `states`, (d,) float64: conserved to float32 rounding, while nobody trains."""
    total: Floats = np.sum([state.x.sum(axis=0, dtype=np.float64) for state in states], axis=0)
    return total


def push_sum_dense(matrices: Sequence[Floats], x: Floats, w: Floats) -> tuple[Floats, Floats]:
    """(x, w) after one round with each of the matrices in turn."""
    for C in matrices:
        x, w = C @ x, C @ w
    return x, w


def push_sum_lossy(
    out_edges: Sequence[Sequence[int]], x: Floats, loss: float, rounds: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Push-sum whose messages simply vanish with probability `loss`, and their mass with them."""
    x, w = x.copy(), np.ones(len(x))
    for _ in range(rounds):
        next_x, next_w = np.zeros_like(x), np.zeros_like(w)
        for i, peers in enumerate(out_edges):
            part = 1.0 / (1 + len(peers))
            arrived = [i, *(j for j in peers if rng.random() >= loss)]
            for j in arrived:
                next_x[j] += part * x[i]
                next_w[j] += part * w[i]
        x, w = next_x, next_w
    return x, w


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustPushSum:
    """The state of push-sum with running sums: sigma, all ever sent; rho[j, i], what i absorbed of j's.

    The last column of every array is the weight.
    """

    held: Floats
    sigma: Floats
    rho: Floats

    def mass(self, out_edges: Sequence[Sequence[int]]) -> Floats:
        """(d + 1,): what is held and what is on its way, conserved under any loss."""
        under_way = sum(
            (self.sigma[j] - self.rho[j, i] for j, peers in enumerate(out_edges) for i in peers),
            np.zeros(self.held.shape[1]),
        )
        total: Floats = self.held.sum(axis=0) + under_way
        return total


def push_sum_robust(
    out_edges: Sequence[Sequence[int]], x: Floats, loss: float, rounds: int, rng: np.random.Generator
) -> RobustPushSum:
    """Push-sum that broadcasts running sums, so that a later message makes good for a lost one.

    Messages are lost, and old ones come again, in any order.
    Source: Hadjicostis, Vaidya, Dominguez-Garcia 2016,
    "Robust distributed average consensus via exchange of running sums".
    """
    n = len(x)
    held = np.concatenate([x, np.ones((n, 1))], axis=1)
    sigma = np.zeros_like(held)
    rho = np.zeros((n, *held.shape))
    newest = np.zeros((n, n), int)
    sent: list[tuple[int, int, int, Floats]] = []
    for seq in range(1, rounds + 1):
        parts = np.array([1.0 / (1 + len(peers)) for peers in out_edges])[:, None]
        held = held * parts
        sigma = sigma + held
        messages = [
            (j, i, seq, sigma[j]) for j, peers in enumerate(out_edges) for i in peers if rng.random() >= loss
        ]
        sent.extend(messages)
        messages += [sent[k] for k in rng.integers(len(sent), size=min(3, len(sent)))]
        for k in rng.permutation(len(messages)):
            j, i, number, total = messages[k]
            if number > newest[j, i]:
                held[i] += total - rho[j, i]
                rho[j, i], newest[j, i] = total, number
    return RobustPushSum(held=held, sigma=sigma, rho=rho)


def sgp_on_quadratic(
    C: Floats, targets: Floats, eta: float, rounds: int, cap: float | None
) -> tuple[Floats, Floats]:
    """(z, w) of stochastic gradient push where peer i minimises |z - targets_i|^2 / 2 with exact gradients.

    targets: (n, d).   cap: the local step is min(1, cap * w) * dz; None leaves it at dz, as SGP has it.
    """
    x, w = np.zeros_like(targets), np.ones(len(targets))
    for _ in range(rounds):
        step = np.ones_like(w) if cap is None else np.minimum(1.0, cap * w)
        x = x - step[:, None] * eta * (x / w[:, None] - targets)
        x, w = C @ x, C @ w
    return x / w[:, None], w


def push_pull_on_quadratic(
    R: Floats, C: Floats, curvature: Floats, targets: Floats, eta: float, rounds: int
) -> Floats:
    """(rounds + 1, n, d): x of AB where peer i minimises curvature_i |x - targets_i|^2 / 2, from x = 0.

    The optimum of the sum is sum(curvature * targets) / sum(curvature).
    """
    x, y, g = np.zeros_like(targets), np.zeros_like(targets), np.zeros_like(targets)
    track = [x]
    for _ in range(rounds):
        new = eta * curvature[:, None] * (x - targets)
        y, g = y + new - g, new
        x, y = R @ (x - y), C @ y
        track.append(x)
    return np.stack(track)
