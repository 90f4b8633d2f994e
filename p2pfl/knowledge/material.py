"""What a hub learns from, and what it answers: its cache as samples of each sender, and back.

`n` samples of a sender, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError
from p2pfl.ids import PeerId
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, log_softmax
from p2pfl.knowledge.cache import Cache, newest
from p2pfl.knowledge.guard import capped
from p2pfl.knowledge.packets import Features, SoftLabels
from p2pfl.work import Floats, Ids, Samples

__all__ = ["answer", "ids_of", "material", "samples"]

Material = Mapping[PeerId, tuple[Features, ...]]


def material(cache: Cache, most: int) -> dict[PeerId, tuple[Features, ...]]:
    """Each sender's newest samples, no more than `most` of one, so that none counts for many."""
    found: dict[PeerId, tuple[Features, ...]] = {}
    for peer, parts in newest(cache).items():
        left, kept = most, []
        for part in parts:
            if left > 0:
                kept.append(capped(part, left))
                left -= kept[-1].ids.size
        found[peer] = tuple(kept)
    return found


def samples(parts: tuple[Features, ...]) -> Samples:
    """`parts` of one sender, and of one coding, in one piece."""
    scales = [part.scales for part in parts if part.scales is not None]
    hidden: NDArray[np.float32] | NDArray[np.int8] = np.concatenate([part.hidden for part in parts])
    return Samples(
        hidden=hidden,
        scales=np.concatenate(scales) if scales else None,
        z=np.concatenate([part.z for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )


def ids_of(parts: tuple[Features, ...]) -> Ids:
    """The names of the samples, in the order of `samples`."""
    return np.concatenate([part.ids for part in parts])


def answer(parts: tuple[Features, ...], logits: Floats, *, classes: int, round_: int) -> SoftLabels:
    """The soft labels of a sender's samples.   logits: (n, K).  Raises LocalError on another shape."""
    ids = ids_of(parts)
    if logits.shape != (ids.size, classes):
        raise LocalError(
            f"the hub model gave predictions of shape {logits.shape} for {ids.size} samples of {classes}"
            " classes"
        )
    order = np.argsort(ids)
    z = log_softmax(logits[order], LOGIT_FLOOR).astype(np.float16)
    return SoftLabels(ids=ids[order], z=z, version=round_)
