"""How fast models came together, by how far apart they were after each of the rounds that only mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["pace"]

# Models this much closer than at the start are one: float32 rounds sums of some numbers to 1e-7 or so.
_EXACT = 1e-6
# Ratios are taken while the distance is above this part of the first, where rounding counts a thousandth.
_MEASURABLE = 1e-4


def pace(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What mixing did after the last round that trained; None without a distance for each round since.

    rounds: as `Population.per_round`.   With D(t) the consensus distance after t mixes,
    `rounds`: mixes measured, T.   `left`: D(T)/D(0).   `exact_after`: the first t with D(t) <= 1e-6 D(0).
    `contraction`: the mean of D(t + 1)^2/D(t)^2, what a round leaves of the squared distance.
    `slope`: the last D(t + 1)/D(t), of a graph that stays nearly its sigma2.   Both while D(t) > 1e-4 D(0).
    """
    trained = [at for at, said in enumerate(rounds) if said["stage"] == "training"]
    since = rounds[trained[-1] :] if trained else rounds
    distances = [said.get("consensus_distance") for said in since]
    if len(distances) < 2 or None in distances or not distances[0]:
        return None
    relative = [distance / distances[0] for distance in distances]
    ratios = [b / a for a, b in pairwise(relative) if a > _MEASURABLE]
    return {
        "rounds": len(distances) - 1,
        "left": relative[-1],
        "exact_after": next((t for t, one in enumerate(relative) if one <= _EXACT), None),
        "contraction": sum(ratio**2 for ratio in ratios) / len(ratios),
        "slope": ratios[-1],
    }
