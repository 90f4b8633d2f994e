"""Poisoned knowledge: what is left out, and whom one does not learn from.

Probe predictions and prototypes are combined by medians (probe.py, proto.py), and every packet has its range
(packets.py).  Here are the other three defences, of a hub against its edges and of an edge against its hub.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from p2pfl.ids import PeerId
from p2pfl.knowledge.beliefs import cross_entropy
from p2pfl.knowledge.cache import taken
from p2pfl.knowledge.packets import Features

__all__ = ["suspects", "capped", "is_better"]

# How many median absolute deviations above the median a sender's loss may be; of normal losses 2% are.
_TOLERANCE = 3.0
# Nats by which honest senders differ at least: the deviation of losses that happen to be equal is 0.
_LEAST_DEVIATION = 0.05
# Two senders who differ have no middle.
_FEWEST = 3


def suspects(losses: Mapping[PeerId, float]) -> frozenset[PeerId]:
    """The senders whose loss is above median + 3 MAD, or no number.

    losses: the hub model's cross-entropy on each sender's features and labels, nats, before it learns from
    them.   Tolerates fewer than half of the senders; with fewer than three nobody is suspected but for a
    loss that is no number.

    >>> sorted(suspects({"a": 0.3, "b": 0.4, "c": 0.5, "d": 7.0}))
    ['d']
    """
    finite = {sender: loss for sender, loss in losses.items() if math.isfinite(loss)}
    found = losses.keys() - finite.keys()
    if len(finite) >= _FEWEST:
        usual = statistics.median(finite.values())
        deviation = statistics.median(abs(loss - usual) for loss in finite.values())
        most = usual + _TOLERANCE * max(deviation, _LEAST_DEVIATION)
        found |= {sender for sender, loss in finite.items() if loss > most}
    return frozenset(found)


def capped(features: Features, most: int) -> Features:
    """At most `most` samples, so that no sender outweighs the others by numbers.

    The first ones: ids are keyed hashes, so these are a random part of an honest sender's samples, and the
    same one in every round.
    """
    n = features.ids.size
    return features if n <= most else taken(features, np.arange(n) < most)


def is_better(teacher: NDArray[np.floating], own: NDArray[np.floating], labels: NDArray[np.integer]) -> bool:
    """Whether the teacher's log-probabilities, (n, K), fit the site's own labels better than the site's own.

    Labels are local truth: a hub that does not beat the head it would teach is not listened to.   False
    without a sample.
    """
    return labels.size > 0 and cross_entropy(teacher, labels) < cross_entropy(own, labels)
