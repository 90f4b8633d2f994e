"""What an edge uploads and is taught; what a hub learns from, its cache as samples; what it answers.

`n` samples of a sender, `K` classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError
from p2pfl.ids import PeerId
from p2pfl.knowledge.beliefs import LOGIT_FLOOR, log_softmax
from p2pfl.knowledge.cache import Cache, newest
from p2pfl.knowledge.guard import capped
from p2pfl.knowledge.hub_state import HubState, Upload
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import Coding, Features, SoftLabels, quantised
from p2pfl.work import Expected, Extracted, Floats, Samples, Teacher

__all__ = ["answer", "material", "samples", "teacher", "upload_of"]

# A soft label of the last round counts in full, one of the round before that seven tenths.
_FADING = 0.7


def teacher(state: HubState, options: ExchangeOptions) -> Teacher | None:
    """The soft labels that the next fit listens to, the less the older they are."""
    if state.taught is None:
        return None
    round_, soft = state.taught
    return Teacher(
        ids=soft.ids,
        log_p=soft.z,
        alpha=options["alpha"] * _FADING ** max(0, state.round - 1 - round_),
        temperature=options["temperature"],
    )


def upload_of(made: Extracted, *, expected: Expected, coding: Coding, most: int, version: int) -> Upload:
    """`made` as it travels: in the order of ids, of at most `most` samples.  Raises LocalError."""
    if made.hidden.shape[1:] != (expected.width,) or made.logits.shape[1:] != (expected.classes,):
        raise LocalError(
            f"features of shape {made.hidden.shape} and logits of shape {made.logits.shape}, expected"
            f" {expected.width} hidden values and {expected.classes} classes a sample"
        )
    order = np.argsort(made.ids)[:most]
    hidden = made.hidden[order].astype(np.float32)
    codes, scales = quantised(hidden) if coding is Coding.INT8 else (hidden, None)
    features = Features(
        ids=made.ids[order],
        hidden=codes,
        scales=scales,
        z=log_softmax(made.logits[order], LOGIT_FLOOR).astype(np.float16),
        labels=made.labels[order].astype(np.uint16),
        version=version,
    )
    return Upload(features=features, is_held_out=made.is_held_out[order])


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


def answer(parts: tuple[Features, ...], logits: Floats, *, classes: int, round_: int) -> SoftLabels:
    """The soft labels of a sender's samples.   logits: (n, K).  Raises LocalError on another shape."""
    ids = np.concatenate([part.ids for part in parts])
    if logits.shape != (ids.size, classes):
        raise LocalError(
            f"the hub model gave predictions of shape {logits.shape} for {ids.size} samples of {classes}"
            " classes"
        )
    order = np.argsort(ids)
    z = log_softmax(logits[order], LOGIT_FLOOR).astype(np.float16)
    return SoftLabels(ids=ids[order], z=z, version=round_)
