"""Torch learners of a population put into stacks that one call of vmap trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from p2pfl.errors import LearnerError
from p2pfl.gossip.mixing import Indices
from p2pfl.learn.jobs import Workshop
from p2pfl.learn.torch_learner import TorchLearner
from p2pfl.learn.torch_stack import TorchStack, kinship

__all__ = ["stacks"]

# Sites in a call.  MLP 64-32-10, batches of 16, one thread: 21,000 steps a second with 25 at a time, 48,000
# with 100, 59,000 with 400, 54,000 with 10,000.
_SITES = 256

_Site = tuple[int, Workshop]


def stacks(apart: Sequence[_Site]) -> tuple[list[tuple[Indices, TorchStack]], list[_Site], tuple[str, ...]]:
    """(stacks with the peers in them, the sites that fit one by one, why).

    A site whose own module says something else of a batch of its own than the stack's does is left out.
    """
    kin: dict[Hashable, list[tuple[int, Workshop, TorchLearner]]] = defaultdict(list)
    alone: list[_Site] = []
    reasons: dict[str, int] = defaultdict(int)
    for peer, shop in apart:
        try:
            if not isinstance(shop.learner, TorchLearner):
                raise LearnerError("it is no TorchLearner")
            kin[kinship(shop.learner)].append((peer, shop, shop.learner))
        except LearnerError as error:
            alone.append((peer, shop))
            reasons[str(error)] += 1
    found = []
    for members in kin.values():
        for at in range(0, len(members), _SITES):
            some = members[at : at + _SITES]
            try:
                whole = TorchStack([learner for _, _, learner in some])
            except LearnerError as error:
                alone += [(peer, shop) for peer, shop, _ in some]
                reasons[str(error)] += len(some)
                continue
            agreeing = [i for i in range(len(some)) if whole.agrees(i)]
            if len(agreeing) < len(some):
                alone += [(peer, shop) for i, (peer, shop, _) in enumerate(some) if i not in set(agreeing)]
                reasons["its module or loss differs from the first site's"] += len(some) - len(agreeing)
                whole = TorchStack([some[i][2] for i in agreeing])
            found.append((np.array([some[i][0] for i in agreeing], np.int64), whole))
    notes = (f"{count} of {len(apart)} learners fit one by one: {why}" for why, count in reasons.items())
    return found, sorted(alone, key=lambda site: site[0]), tuple(notes)
