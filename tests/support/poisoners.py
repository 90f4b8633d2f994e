"""Knowledge that lies, for tests: predictions, features, prototypes, and a hub's answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.knowledge.beliefs import PROBE_FLOOR, log_softmax
from p2pfl.knowledge.packets import Features, Prototypes, SoftLabels

Floats = NDArray[np.float64]

__all__ = ["loss_maximising", "class_prior", "flipped_labels", "moved_prototypes", "bad_answer"]


def certain(classes: NDArray[np.integer], K: int) -> Floats:
    """All belief in one class a sample, as (n, K) log-probabilities."""
    return log_softmax(-PROBE_FLOOR * np.eye(K)[classes])


def loss_maximising(honest: Floats) -> Floats:
    """All belief in the class that the honest mean, (p, n, K) log-probabilities, believes least.

    Source: Roux et al. 2024, arXiv:2402.12265, the loss maximisation attack.
    """
    return certain(np.exp(honest).mean(axis=0).argmin(axis=1), honest.shape[2])


def class_prior(honest: Floats) -> Floats:
    """All belief in the class that is least like the predicted one, by the honest predictions themselves.

    Source: the same, the class prior attack.
    """
    p = np.exp(honest).mean(axis=0)
    likeness = np.corrcoef(p.T)
    return certain(likeness.argmin(axis=1)[p.argmax(axis=1)], p.shape[1])


def flipped_labels(features: Features) -> Features:
    """Every label and every own belief moved to the next class."""
    K = features.z.shape[1]
    return replace(
        features,
        labels=((features.labels + 1) % K).astype(np.uint16),
        z=np.roll(features.z, 1, axis=1),
    )


def moved_prototypes(prototypes: Prototypes, by: float) -> Prototypes:
    """Every mean moved far away, and a count that claims the most."""
    return replace(
        prototypes,
        means=(prototypes.means + np.float32(by)).astype(np.float32),
        counts=np.full(prototypes.counts.shape, 2**32 - 1, np.uint32),
    )


def bad_answer(soft: SoftLabels) -> SoftLabels:
    """A hub that answers with another sample's labels, as one that keys them by batch does."""
    return replace(soft, z=np.roll(soft.z, 1, axis=0))
