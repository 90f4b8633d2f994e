"""Attackers in a population: what each of them sends to each honest receiver, forged from the matrix.

They see what attackers of the world see (byzantine.py): every honest model as it stands after the round's
step.  A body that a peer would refuse before mixing it, or that is never sent, is None.
`n` peers, the first `h` honest, `d` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.events import Vector
from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.gossip.topology import Plan
from p2pfl.ids import PeerId
from p2pfl.state import seed_of
from p2pfl.trust.screening import judge_vector

from .attacks import CONCERTED_KINDS, FORGE, AttackOptions, Sight, forge
from .placement import fiedler, slowest

__all__ = ["Lies", "Liars"]

# What honest receiver i gets from attacker j in a round, by (i, j).
Lies = dict[tuple[int, int], Vector | None]


class Liars:
    """The attackers of a run, those from `honest` on.  It remembers the spectrum of the last graph."""

    def __init__(
        self, attack: AttackOptions, honest: int, names: Sequence[PeerId], seed: int, *, is_plain: bool
    ) -> None:
        """seed: the run's.   is_plain: whether receivers mix by the plan's rows, which attackers know."""
        self._attack, self._honest, self._names, self._seed = attack, honest, names, seed
        self._is_plain = is_plain
        self._spectrum: tuple[Plan, float, Floats] | None = None

    def tell(
        self, plan: Plan, models: Vectors, own: Vectors, before: Vectors, *, number: int, opening: int
    ) -> Lies:
        """What is sent in round `number`, of which `opening` were before training; empty before the attack.

        models: (n, d), of all after the round's step.   own, before: (n - h, d), what each attacker would
        have sent, and its model before its last fit.
        """
        training_round = number - opening
        if training_round < self._attack.starts_at:
            return {}
        lies: Lies = {}
        for i in range(self._honest):
            heard = plan.in_neighbours(i)
            seen = [j for j in heard if j < self._honest]
            common: tuple[Vector | None] | None = None
            for j in heard[len(seen) :]:
                if common is None or self._attack.kind not in CONCERTED_KINDS:
                    sight = Sight(
                        honest=models[[i, *seen]],
                        own=own[j - self._honest],
                        before=before[j - self._honest],
                        n=1 + len(heard),
                        byzantine=len(heard) - len(seen),
                        round=training_round,
                        rng=np.random.default_rng([*seed_of(self._seed, FORGE, self._names[j], number), i]),
                        weights=self._weights(plan, i, seen),
                        slowest=self._slowest(plan, models, i),
                    )
                    common = (_usable(forge(self._attack, sight)),)
                lies[i, j] = common[0]
        return lies

    def _weights(self, plan: Plan, i: int, seen: Sequence[int]) -> Floats | None:
        if not self._is_plain:
            return None
        row = plan.row(i)
        return np.array([row[i], *(row[j] for j in seen)])

    def _slowest(self, plan: Plan, models: Vectors, i: int) -> Vector | None:
        if self._attack.kind != "spectral":
            return None
        if self._spectrum is None or self._spectrum[0].graph is not plan.graph:
            self._spectrum = (plan, *fiedler(plan, range(self._honest)))
        _, mu, e = self._spectrum
        return slowest(mu, e, models[: self._honest], i)


def _usable(vector: Vector | None) -> Vector | None:
    if vector is None:
        return None
    reason = judge_vector(vector, np.zeros(0), weight=1.0, max_norm=None, max_weight=1.0)
    return vector if reason is None else None
