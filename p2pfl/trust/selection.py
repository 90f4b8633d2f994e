"""Which rows a rule takes, and how much of each, decided by distances alone.

`n` points, `f` of them Byzantine, `between` (n, n) their squared distances, `distances` (n,) how far each is
from the anchor: the receiver's own model, x_i.  Where there is no anchor a rule returns weights `a` (n,) that
sum to 1, and the result is the sum of a_j x_j.  Where there is one, it returns `c` (n,), and the result is
x_i plus the sum of c_j (x_j - x_i).  Ties go to the lower row.  O(n^2) to O(n^3), nothing of size d.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from p2pfl.trust.gram import Floats

__all__ = [
    "nearest_neighbour_mixing",
    "bucket_mixing",
    "krum_order",
    "krum",
    "multi_krum",
    "bulyan_selection",
    "geometric_median",
    "centered_clipping",
    "self_centered_clipping",
    "clipped_sum",
    "trimmed_sum",
    "nearest_to_anchor",
    "ubar",
    "balance",
    "norm_filter",
]

# Weiszfeld's steps shrink the error by a constant factor, which is close to 1 only when the median lies very
# near a point; 1000 steps of n = 50 take 10 ms.
_MAX_STEPS = 1000
# A step shorter than this part of the typical distance ends them: float32's own resolution is 6e-8.
_STEP = 1e-9
# Unit vectors from float32 distances add up to this much too little or too much.
_TIE = 1e-6


def nearest_neighbour_mixing(between: Floats, f: int) -> Floats:
    """The mixing matrix (n, n): row i averages the n - f points nearest to point i, itself among them.

    Source: Allouah et al. 2023, arXiv:2302.01772, algorithm 2 (NNM).
    """
    keep = max(1, len(between) - f)
    near = np.argsort(between, axis=1, kind="stable")[:, :keep]
    mixing = np.zeros_like(between)
    np.put_along_axis(mixing, near, 1.0 / keep, axis=1)
    return mixing


def bucket_mixing(order: NDArray[np.int64], size: int) -> Floats:
    """The mixing matrix (n/size, n) that averages `size` rows at a time, in `order`; the last may be fewer.

    Source: Karimireddy et al. 2022, arXiv:2006.09365, algorithm 1.
    """
    n = len(order)
    mixing = np.zeros((-(-n // size), n))
    mixing[np.arange(n) // size, order] = 1.0
    averaging: Floats = mixing / mixing.sum(axis=1, keepdims=True)
    return averaging


def krum_order(between: Floats, f: int) -> NDArray[np.int64]:
    """The points from the best Krum score, the sum of the n - f smallest squared distances, to the worst.

    A point's distance 0 to itself is one of them, so with n - f = 2 the two closest points tie; of equal
    scores the one nearer to all points comes first.
    """
    keep = max(1, len(between) - f)
    scores = np.sort(between, axis=1)[:, :keep].sum(axis=1)
    order: NDArray[np.int64] = np.lexsort((between.sum(axis=1), scores))
    return order


def krum(between: Floats, f: int) -> Floats:
    """All weight on the point of the smallest Krum score.

    Source: Blanchard et al. 2017, "Machine learning with adversaries", section 4, with the n - f nearest of
    Allouah et al. 2023, appendix 8.1.3, in place of n - f - 2, for which kappa is proved.
    """
    return multi_krum(between, f, 1)


def multi_krum(between: Floats, f: int, m: int | None = None) -> Floats:
    """Equal weight on the m points of the smallest Krum scores; m is n - f where not given.

    Source: Blanchard et al. 2017, section 5.
    """
    n = len(between)
    chosen = krum_order(between, f)[: min(n, m or max(1, n - f))]
    weights: Floats = np.zeros(n)
    weights[chosen] = 1.0 / len(chosen)
    return weights


def bulyan_selection(between: Floats, f: int) -> list[int]:
    """The n - 2f points that Krum picks one after another, each from those left, in rising order.

    Source: El Mhamdi et al. 2018, arXiv:1802.07927, algorithm 2; the caller then takes, per coordinate, the
    mean of the n - 4f values nearest the median.
    """
    left = np.arange(len(between))
    picked = []
    for _ in range(max(1, len(between) - 2 * f)):
        best = int(krum_order(between[np.ix_(left, left)], f)[0])
        picked.append(int(left[best]))
        left = np.delete(left, best)
    return sorted(picked)


def geometric_median(between: Floats) -> Floats:
    """Weights whose combination has the least sum of distances to the points.

    Source: Weiszfeld's algorithm as in Pillutla et al. 2019, arXiv:1912.13445, algorithm 2, run until
    it stands still.  Where it would crawl, at a median that is one of the points, Kuhn 1973, "A note on
    Fermat's problem", section 2, is asked first: point k is a median exactly if the unit vectors from
    it to the others add up to at most its multiplicity.  Two such points have all between them: their mean.
    """
    n = len(between)
    distances = np.sqrt(between)
    with np.errstate(divide="ignore"):
        inverse = np.where(distances > 0, 1.0 / distances, 0.0)
    # <x_i - x_k, x_j - x_k> = (D_ik + D_jk - D_ij) / 2; summed over i and j with weights 1/|x_i - x_k|.
    pulls = inverse.sum(axis=1) * distances.sum(axis=1) - 0.5 * np.einsum(
        "ki,ij,kj->k", inverse, between, inverse, optimize=True
    )
    medians = pulls <= ((distances == 0).sum(axis=1) + _TIE) ** 2
    if medians.any():
        weights: Floats = medians / medians.sum()
        return weights
    weights = np.full(n, 1.0 / n)
    typical = float(np.median(distances))
    for _ in range(_MAX_STEPS):
        length = np.sqrt(np.maximum(_to_combination(between, weights), 0.0))
        closeness = 1.0 / np.maximum(length, _STEP * typical)
        following = closeness / closeness.sum()
        step = following - weights
        weights = following
        if -0.5 * step @ between @ step <= (_STEP * typical) ** 2:
            break
    return weights


def _to_combination(between: Floats, weights: Floats) -> Floats:
    """Squared distances of the points to the combination of them with `weights`, which sum to 1."""
    pulled = between @ weights
    to_it: Floats = pulled - 0.5 * (weights @ pulled)
    return to_it


def centered_clipping(
    between: Floats, start: Floats, counted: Floats, *, tau: float | None, iterations: int
) -> Floats:
    """Weights after `iterations` of v <- v + (1/n) sum of min(1, tau/|x_j - v|) (x_j - v).

    start: the weights of the first v.   counted: 1 for each point that takes part, 0 for a mere anchor.
    tau: the radius; the median distance from the first v where it is None (ours; the paper tunes it).
    Source: Karimireddy et al. 2021, arXiv:2012.10333, algorithm 2.
    """
    weights = start.copy()
    n = counted.sum()
    for _ in range(iterations):
        length = np.sqrt(np.maximum(_to_combination(between, weights), 0.0))
        if tau is None:
            tau = float(np.median(length[counted > 0]))
        pull = counted * np.minimum(1.0, tau / np.maximum(length, 1e-300)) / n
        weights = weights * (1.0 - pull.sum()) + pull
    return weights


def _clip(distances: Floats, tau: float) -> Floats:
    return np.minimum(1.0, tau / np.maximum(distances, 1e-300))


def _far_mass(distances: Floats, weights: Floats, mass: float) -> tuple[Floats, float]:
    """How much of each weight is not among the farthest `mass`, and the distance at which that is reached."""
    order = np.argsort(-distances, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = np.empty_like(weights)
    kept[order] = np.clip(before + weights[order] - mass, 0.0, weights[order])
    # 1e-12: the weights of 2b rows add up to 2b only to rounding.
    reached = np.flatnonzero(before + weights[order] >= mass - 1e-12)
    return kept, float(distances[order[reached[0]]]) if reached.size else 0.0


def self_centered_clipping(distances: Floats, weights: Floats, b: float, tau: float | None) -> Floats:
    """Every difference clipped to tau, then weighted.

    weights: (n,) mixing weights.   b: how much of them may be Byzantine.   tau: where None, by
    He et al. 2022, arXiv:2202.01545, theorem III, tau^2 = (1/b) sum of w_j |x_j - x_i|^2 over the
    honest, whom the nearest 1 - b of the weight stand in for, as no peer knows them.
    """
    if tau is None:
        if b <= 0:
            return weights
        nearest, _ = _far_mass(distances, weights, b)
        tau = float(np.sqrt(nearest @ distances**2 / b))
    return weights * _clip(distances, tau)


def clipped_sum(distances: Floats, weights: Floats, b: float) -> Floats:
    """Every difference clipped to the distance that the farthest 2b of the weight reach (CS+).

    (b, 2)-robust: |F - sum over S of w z|^2 <= 2b sum over S of w |z|^2 when all but b of the weight is in S.
    Source: Gaucher et al. 2025, arXiv:2410.10418, section 4.
    """
    if b <= 0:
        return weights
    return weights * _clip(distances, _far_mass(distances, weights, 2 * b)[1])


def trimmed_sum(distances: Floats, weights: Floats, b: float) -> Floats:
    """The farthest b of the weight is dropped, a part of a row's where need be (GTS).

    (b, 4)-robust, in the words of `clipped_sum`.   Source: Gaucher et al. 2025, section 4.
    """
    return _far_mass(distances, weights, b)[0]


def nearest_to_anchor(distances: Floats, f: int) -> Floats:
    """Equal weight on the n - f points nearest the anchor (MoNNA's mixing).

    Source: Farhadkhani et al. 2023, arXiv:2209.10931, algorithm 1 (nearest-neighbour averaging).
    """
    keep = max(1, len(distances) - f)
    weights: Floats = np.zeros(len(distances))
    weights[np.argsort(distances, kind="stable")[:keep]] = 1.0 / keep
    return weights


def ubar(distances: Floats, others: Floats, losses: Floats, own_loss: float, *, keep: int) -> Floats:
    """Equal weight, 1 in all, on those of the `keep` nearest others whose loss is no worse than the own.

    others: 1 for a neighbour, 0 for the receiver itself.   losses: (n,), of each model on the receiver's
    rows; one that is not finite counts as infinite.   When all are worse, the best of the nearest alone.
    Source: Guo et al. 2021, arXiv:2002.08569, section 4.
    """
    candidates = np.flatnonzero(others)
    near = candidates[np.argsort(distances[candidates], kind="stable")[:keep]]
    if not near.size:
        return np.zeros(len(distances))
    measured = np.where(np.isfinite(losses[near]), losses[near], np.inf)
    good = near[measured <= own_loss]
    chosen = good if good.size else near[[int(measured.argmin())]]
    result = np.zeros(len(distances))
    result[chosen] = 1.0 / chosen.size
    return result


def balance(distances: Floats, others: Floats, threshold: float) -> Floats:
    """Equal weight, 1 in all, on the others within `threshold` of the anchor; 0 if there are none.

    Source: Fang et al. 2024, arXiv:2406.10416, equation 4.
    """
    accepted = (distances <= threshold) & (others > 0)
    weights: Floats = accepted / max(1, accepted.sum())
    return weights


def norm_filter(distances: Floats, others: Floats, limit: float) -> Floats:
    """Equal weight on the points that are at most `limit` times the others' median distance away."""
    far = distances > limit * float(np.median(distances[others > 0])) if others.any() else distances < 0
    weights: Floats = ~far / max(1, (~far).sum())
    return weights
