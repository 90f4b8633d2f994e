"""Class prototypes: the mean embedding of each class at one site, and the median of those over sites.

`n` samples, `K` classes, `h` values of an embedding, `p` peers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.knowledge.packets import MAX_HIDDEN, Prototypes

__all__ = ["class_means", "combine", "geometric_median"]

# Weiszfeld's steps shrink the error by a constant factor; hundreds are needed only by rare sets of points.
_MAX_STEPS = 500
# Of the points' typical distance: closer is the same place, and a shorter step ends the search.
_SAME = 1e-9


def class_means(
    embeddings: NDArray[np.floating], labels: NDArray[np.integer], *, classes: int, least: int
) -> Prototypes | None:
    """The mean embedding of each class with at least `least` samples; None when there is none.

    embeddings: (n, h).   labels: (n,) below `classes`.   Values beyond what travels are cut to it.
    Source: Tan et al. 2022, arXiv:2105.00243 (FedProto), eq. 3.

    >>> class_means(np.array([[0.], [2.], [9.]]), np.array([1, 1, 2]), classes=3, least=2).means.tolist()
    [[1.0]]
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.flatnonzero(counts >= max(1, least))
    if not present.size:
        return None
    sums = np.zeros((classes, embeddings.shape[1]))
    np.add.at(sums, labels, np.asarray(embeddings, np.float64))
    means = sums[present] / counts[present, None]
    return Prototypes(
        classes=present.astype(np.uint16),
        counts=counts[present].astype(np.uint32),
        means=np.clip(means, -MAX_HIDDEN, MAX_HIDDEN).astype(np.float32),
        K=classes,
    )


def combine(
    prototypes: Sequence[Prototypes], *, classes: int, width: int, least: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The geometric median of each class over peers, (K, h), and the classes, (K,) bool, that have one.

    prototypes: p of them, in PeerId order.   least: a mean of fewer samples does not count.
    Tolerates fewer than half of a class's peers.   FedProto (eq. 6) weighs peers by their counts; a liar
    names any count, so here they weigh alike.
    """
    centres = np.zeros((classes, width), np.float32)
    is_known = np.zeros(classes, np.bool_)
    for label in range(classes):
        rows = [
            peer.means[i]
            for peer in prototypes
            for i in np.flatnonzero((peer.classes == label) & (peer.counts >= least))
        ]
        if rows:
            centres[label] = geometric_median(np.stack(rows))
            is_known[label] = True
    return centres, is_known


def geometric_median(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """The point, (h,), with the least sum of distances to `points`, (p, h), p at least 1.

    Of two points, the middle.   O(p h) a step.
    Source: Vardi and Zhang 2000 (PNAS 97:1423), Weiszfeld's step made safe at the points themselves.  Ours is
    the jump to the nearest point where that is no worse: towards one that is the median, or nearly, steps
    shrink so fast that thousands do not arrive.

    >>> geometric_median(np.array([[0.0], [1.0], [100.0]])).tolist()
    [1.0]
    """
    x = np.asarray(points, np.float64)
    y: NDArray[np.float64] = np.median(x, axis=0)
    for _ in range(_MAX_STEPS):
        away = x - y
        distances = np.sqrt((away**2).sum(axis=1))
        there = x - x[distances.argmin()]
        if (beyond := np.sqrt((there**2).sum(axis=1))).sum() < distances.sum():
            y, away, distances = x[distances.argmin()], there, beyond
        same = _SAME * float(np.median(distances[distances > 0], axis=0)) if distances.any() else 0.0
        is_far = distances > same
        if not is_far.any():
            break
        pull = 1 / distances[is_far]
        force = (pull[:, None] * away[is_far]).sum(axis=0)
        strength = float(np.sqrt((force**2).sum()))
        # As many points as lie where y is hold it there.
        held = float((~is_far).sum())
        if strength <= held:
            break
        step = (1 - held / strength) * force / pull.sum()
        y = y + step
        if float(np.sqrt((step**2).sum())) <= same:
            break
    return y
