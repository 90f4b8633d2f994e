"""Which mixing an agreement asks for, and the step that a robust rule takes with what came in.

With capped shares (gossip/capped.py) mixing is push-sum's, and weights that lie buy nothing.   With a robust
rule every site weighs what it hears by itself: models travel as states, a sender's push-sum
weight is not asked for, and the mixing is row-stochastic by the receiver's choice.  There is then no
conserved mass, and consensus leans towards sites that many others hear (the Perron vector of the weights).
`n` inputs with the own one, `d` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.events import Vector
from p2pfl.gossip import averaging
from p2pfl.gossip.capped import CAPPED_SHARE
from p2pfl.gossip.mixing import Kind, Mixer
from p2pfl.run import RunSpec
from p2pfl.trust import robust
from p2pfl.trust.options import AggregatorOptions
from p2pfl.trust.relations import Level
from p2pfl.trust.robust import Weighing
from p2pfl.trust.rules import count_f, options_of

__all__ = ["ROBUST", "conserves_mass", "is_capped", "is_robust", "mix_robustly", "mixer_of", "tolerated"]

# A rule weighs what the receiver hears: any graph will do.
ROBUST = Mixer(name="robust", requires=frozenset({Kind.ROW}), delivery="state")


def is_robust(spec: RunSpec) -> bool:
    """Whether a robust rule mixes, in place of `gossip.averaging`."""
    return not is_capped(spec) and spec.trust.aggregator.kind != "none"


def is_capped(spec: RunSpec) -> bool:
    """Whether shares are taken only as far as the edge's books allow."""
    return spec.trust.aggregator.kind == CAPPED_SHARE.name


def mixer_of(spec: RunSpec) -> Mixer:
    """How models mix under this agreement."""
    if is_capped(spec):
        return CAPPED_SHARE
    return ROBUST if is_robust(spec) else averaging.mixer_of(spec.gossip.averaging)


def conserves_mass(spec: RunSpec) -> bool:
    """Whether weights are shares of a sum that never changes; reports say null where there is none."""
    return mixer_of(spec).delivery == "share"


def tolerated(options: AggregatorOptions, edges: int) -> int:
    """How many of `edges` in-neighbours may be Byzantine: `f`, or that fraction of them rounded up."""
    return count_f(int(options.f) if options.f >= 1 else options.f, 1 + edges)


def mix_robustly(
    options: AggregatorOptions,
    own: Vector,
    others: Sequence[Vector],
    *,
    levels: Sequence[Level],
    edges: int,
    progress: float,
) -> Weighing:
    """The rule's answer to the own model (row 0) and the others', in the order given.

    own, others: (d,) float32.   levels: of each of the others; a limited one is taken halfway to the own
    model, which halves what it can move.   edges: in-neighbours by the plan, present or not, of which `f`
    may be a fraction.   progress: the share of training rounds done, 0..1.
    """
    half = np.float32(0.5)
    taken = [
        own + half * (other - own) if level is Level.LIMITED else other
        for other, level in zip(others, levels, strict=True)
    ]
    rows = [own, *taken]
    f = min(tolerated(options, edges), len(rows) - 1)
    parameters: dict[str, float] = options.given()
    if "progress" in options_of(options.kind, {})[2]:
        parameters["progress"] = progress
    return robust.weigh(options.kind, rows, f=f, anchor=own, **parameters)
