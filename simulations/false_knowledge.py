"""Attacks on knowledge: what a Byzantine site's learner is made to have answered, before its peer tells it.

The peer inside codes, names and sends it as if it were true, so that only the content is a lie.  An attacker
knows its own model and no other: what it believes stands for what the honest believe.

`n` samples, `K` classes, `h` values of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.knowledge.beliefs import PROBE_FLOOR, log_softmax
from p2pfl.run import RunSpec
from p2pfl.work import Answered, Extracted, Floats, Learned, Result, Summarised

from .attacks import KNOWLEDGE_KINDS, AttackOptions

__all__ = ["check", "false_result"]

# By so many times its own length a prototype is thrown to the other side.
_FAR = -10.0


def check(attack: AttackOptions, spec: RunSpec, where: str) -> None:
    """Refuse an attack on knowledge that the run does not exchange.  Raises ConfigError."""
    needed, kind = KNOWLEDGE_KINDS.get(attack.kind), spec.knowledge.exchange.kind
    if needed is not None and needed != kind:
        raise ConfigError(
            f"{where}: simulation.attack.kind = {attack.kind!r} lies in an exchange of kind {needed!r}, and"
            f" knowledge.exchange.kind is {kind!r}; choose the one that fits the other"
        )


def false_result(attack: AttackOptions, result: Result) -> Result:
    """What the learner is said to have answered; `result` itself where the attack is not on it."""
    forger = _FORGERS.get((attack.kind, type(result)))
    return result if forger is None else forger(result)


def _loss_maximising(true: Answered) -> Answered:
    """All belief in the class that is believed least.  Source: Roux et al. 2024, arXiv:2402.12265, LMA."""
    return replace(true, logits=_certain(true.logits.argmin(axis=1), true.logits.shape[1]))


def _class_prior(true: Answered) -> Answered:
    """All belief in the class least like the predicted one, by own predictions.  Source: as LMA; CPA."""
    p = np.exp(log_softmax(true.logits))
    # A class that is predicted alike for all samples has no likeness: as unlike as can be.
    with np.errstate(invalid="ignore", divide="ignore"):
        likeness = np.nan_to_num(np.corrcoef(p.T), nan=-1.0)
    return replace(true, logits=_certain(likeness.argmin(axis=1)[p.argmax(axis=1)], p.shape[1]))


def _flipped(true: Extracted) -> Extracted:
    """Every label, and every belief, moved to the next class."""
    K = true.logits.shape[1]
    labels = (true.labels + 1) % K
    return replace(true, labels=labels.astype(true.labels.dtype), logits=np.roll(true.logits, 1, axis=1))


def _wrong_answers(true: Learned) -> Learned:
    """Every soft label moved to the next class; the hub's own model is as it is."""
    return replace(true, logits={sender: np.roll(z, 1, axis=1) for sender, z in true.logits.items()})


def _thrown(true: Summarised) -> Summarised:
    """Every embedding far on the other side of 0."""
    return replace(true, embeddings=_FAR * np.asarray(true.embeddings))


def _certain(classes: NDArray[np.integer], K: int) -> Floats:
    logits: Floats = -PROBE_FLOOR * np.eye(K)[classes]
    return logits


_FORGERS: dict[tuple[str, type], Callable[[Any], Result]] = {
    ("poisoned-probe", Answered): _loss_maximising,
    ("poisoned-probe-prior", Answered): _class_prior,
    ("poisoned-labels", Extracted): _flipped,
    ("poisoned-hub", Learned): _wrong_answers,
    ("poisoned-prototypes", Summarised): _thrown,
}
