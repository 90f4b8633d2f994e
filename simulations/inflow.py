"""Who hears whom in a round, in pieces that mix in one call: receivers with equally many in-neighbours.

`n` peers, `k` in-neighbours of each of `m` receivers, `d` parameters.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from p2pfl.gossip.mixing import Floats, Indices
from p2pfl.gossip.topology import Plan

__all__ = ["Inflow", "Weights", "inflows"]

# Neighbours' models gathered at a time, as elements: 64 MiB of float32.
_ELEMENTS = 2**24

# What receivers multiply what they hear by: nothing, the plan's rows, or 1/(1 + k).
Weights = Literal["none", "rows", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflow:
    """What `receivers` hear.

    receivers: (m,), positions in the list of peers that was asked about.   senders: (m, k), peers, in PeerId
    order along each row.   weights: (m, 1 + k), own first; None where shares are simply added.
    fractions: (m, k), the part that each gives of what it held, where it gives its neighbours unequal ones.
    """

    receivers: Indices
    senders: Indices
    weights: Floats | None
    fractions: Floats | None = None


def inflows(plan: Plan, peers: Indices, weights: Weights, d: int) -> list[Inflow]:
    """What `peers` hear under `plan`, cut so that a piece gathers at most 64 MiB of models (one receiver's
    at least); who hears nobody is left out.  O(edges into `peers`).
    """
    by_degree: dict[int, list[int]] = defaultdict(list)
    for position, i in enumerate(peers.tolist()):
        by_degree[len(plan.in_neighbours(i))].append(position)
    found = []
    for degree, positions in sorted(by_degree.items()):
        if degree == 0:
            continue
        height = max(1, _ELEMENTS // ((1 + degree) * max(1, d)))
        for start in range(0, len(positions), height):
            where = np.array(positions[start : start + height], np.int64)
            heard = [plan.in_neighbours(i) for i in peers[where].tolist()]
            found.append(
                Inflow(
                    receivers=where,
                    senders=np.array(heard, np.int64),
                    weights=_weights(plan, peers[where], weights, degree),
                    fractions=_fractions(plan, peers[where]) if weights == "none" else None,
                )
            )
    return found


def _fractions(plan: Plan, receivers: Indices) -> Floats | None:
    if not plan.graph.has_unequal_parts:
        return None
    return np.array([plan.graph.in_weights(i) for i in receivers.tolist()])


def _weights(plan: Plan, receivers: Indices, weights: Weights, degree: int) -> Floats | None:
    match weights:
        case "none":
            return None
        case "uniform":
            return np.full((len(receivers), 1 + degree), 1.0 / (1 + degree))
        case "rows":
            rows = [(i, plan.row(i)) for i in receivers.tolist()]
            return np.array([[row[i], *(row[j] for j in sorted(row) if j != i)] for i, row in rows])
