"""Averaging with latest states (D-PSGD), and the mixers an agreement can name.

`n` peers on the leading axis (a daemon: one), `k` neighbours of each, `d` parameters.
Source: Lian et al. 2017, arXiv:1705.09056, algorithm 1.  There x+ = W x - eta g; here peers train first and
mix what training gave, x+ = W (x - eta g), so that one message a round carries the newest model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError
from p2pfl.gossip.mixing import Floats, Kind, Mixer, Vectors, combine
from p2pfl.gossip.options import AveragingOptions
from p2pfl.gossip.push_pull import PUSH_PULL
from p2pfl.gossip.push_sum import PUSH_SUM

__all__ = ["D_PSGD", "NO_AVERAGING", "MIXERS", "mixer_of", "without_missing", "mix"]

D_PSGD = Mixer(name="d-psgd", requires=frozenset({Kind.DOUBLY}), delivery="state")

# Every site keeps the model that it has: for runs that exchange knowledge alone.
NO_AVERAGING = Mixer(name="none", requires=frozenset(), delivery="state")

MIXERS = {"push-sum": PUSH_SUM, "push-pull": PUSH_PULL, "d-psgd": D_PSGD, "none": NO_AVERAGING}


def mixer_of(options: AveragingOptions) -> Mixer:
    """The mixer that `[gossip] averaging` names."""
    return MIXERS[options.kind]


def without_missing(weights: Floats, present: NDArray[np.bool_]) -> Floats:
    """Row weights when some neighbours' states are missing: theirs move to the peer's own model.

    weights: (n, 1+k), own first.   present: (n, k) bool.   returns: (n, 1+k), rows sum as before.
    The mean of all models survives only if the loss is symmetric (j misses i whenever i misses j).
    """
    if present.shape != (weights.shape[0], weights.shape[1] - 1):
        raise AggregationError(f"presence of shape {present.shape} for weights of shape {weights.shape}")
    others = np.where(present, weights[:, 1:], 0.0)
    own = weights[:, 0] + np.where(present, 0.0, weights[:, 1:]).sum(axis=1)
    return np.concatenate([own[:, None], others], axis=1)


def mix(x: Vectors, neighbours: Sequence[Vectors | None], weights: Floats) -> Vectors:
    """The weighted average of each peer's model and its neighbours': x+ = W x, on one row of W a peer.

    x: (n, d) float32, own models.   neighbours: k arrays (n, d) float32, in PeerId order; None where nothing
    came, and then the peer's own model stands in.   weights: (n, 1+k) float64, own first (`Plan.row`).
    returns: (n, d) float32; accumulated in float64 in the given order.  O(n d k).
    Raises AggregationError when shapes differ, or a row of weights is negative or does not sum to 1.
    """
    n, k = len(x), len(neighbours)
    if weights.shape != (n, 1 + k):
        raise AggregationError(
            f"weights of shape {weights.shape}, expected ({n}, {1 + k}): own, then each neighbour"
        )
    # Rows of 1/(1+k) sum to 1 within k roundings of 1e-16; a forgotten neighbour is off by 1/(1+k).
    if not ((weights >= 0).all() and np.allclose(weights.sum(axis=1), 1.0, rtol=0, atol=1e-9)):
        raise AggregationError(
            "a row of mixing weights is negative or does not sum to 1; take them from Plan.row"
        )
    present = np.array([[neighbour is not None for neighbour in neighbours]] * n, bool).reshape(n, k)
    weights = without_missing(weights, present)
    arrived = [(j, neighbour) for j, neighbour in enumerate(neighbours, start=1) if neighbour is not None]
    return combine(
        [x, *(neighbour for _, neighbour in arrived)],
        [np.ascontiguousarray(weights[:, 0]), *(np.ascontiguousarray(weights[:, j]) for j, _ in arrived)],
    )
