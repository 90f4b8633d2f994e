"""A round's graph as the fused kernels mix it: shifts, lists of edges, or one common mean; never a matrix.

`n` peers, `d` parameters.  Receiver form: each peer keeps a part of what it holds and takes parts of others'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pfl.aggregation import mixer_of
from p2pfl.gossip import topology
from p2pfl.gossip.mixing import Floats, Indices, Kind, Mixer, uniform_fraction
from p2pfl.gossip.topology import Plan
from p2pfl.run import RunSpec
from p2pfl.trust.screening import MIN_WEIGHT

from .kernels import Links, links, no_links

__all__ = ["Route", "route", "routes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Who hears whom in a round.

    edges: how many there are.   is_share: x and w are conserved and split, or models are averaged.
    offsets, parts: of a graph of shifts, and what of each is taken.   receivers, senders, weights: otherwise
    the edges, by receiver, then sender, with `starts`, (n + 1,), the first edge of each receiver.   own: (n,)
    what each keeps.
    """

    n: int
    edges: int
    is_share: bool
    own: Floats
    offsets: Indices | None = None
    parts: Floats | None = None
    starts: Indices | None = None
    receivers: Indices | None = None
    senders: Indices | None = None
    weights: Floats | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all take equally of all, so that they mix to one mean."""
        return self.parts is not None and len(self.parts) == self.n - 1 > 1 and np.ptp(self.parts) == 0

    def mix(self, w: Floats) -> tuple[Links, Floats]:
        """How rows mix, and the weights after it.   w: (n,) before.

        Of a complete graph the links lack `common`, the mean of all rows, which takes a pass over them.
        """
        if not self.edges:
            return no_links(), w
        if self.is_complete:
            return links(own=0.0), np.full(self.n, w.mean())
        if self.offsets is not None and self.parts is not None:
            # Every row and column sums to 1, so equal weights stay equal.
            after = w
            if np.ptp(w) > 0:
                after = self.own * w
                for offset, part in zip(self.offsets.tolist(), self.parts.tolist(), strict=True):
                    after = after + part * np.roll(w, offset)
            return links(own=self.own[:1], offsets=self.offsets, weights=self.parts), after
        assert self.receivers is not None
        assert self.senders is not None
        assert self.weights is not None
        own, weights = self.own, self.weights
        if self.is_share:
            # What a neighbour would have to refuse stays where it is, as in population.py.
            is_too_small = weights * w[self.senders] < MIN_WEIGHT
            if is_too_small.any():
                weights = np.where(is_too_small, 0.0, weights)
                own = np.asarray(1.0 - np.bincount(self.senders, weights, self.n), np.float64)
            came = np.bincount(self.receivers, weights=weights * w[self.senders], minlength=self.n)
            w = np.asarray(own * w + came, np.float64)
        return links(own=own, starts=self.starts, senders=self.senders, weights=weights), w


def route(plan: Plan, mixer: Mixer) -> Route:
    """What `plan` is to `mixer`, push-sum or d-psgd.  Raises ConfigError when it cannot carry its weights."""
    topology.check(plan, mixer)
    n, is_share = plan.n, mixer.delivery == "share"
    if plan.offsets is not None:
        offsets = np.array(plan.offsets, np.int64)
        given = plan.graph.offset_weights
        parts = np.full(len(offsets), uniform_fraction(len(offsets))) if given is None else np.array(given)
        own = np.full(n, max(0.0, 1.0 - parts.sum()))
        return Route(n=n, edges=n * len(offsets), is_share=is_share, own=own, offsets=offsets, parts=parts)
    W = topology.mixing_matrix(plan, Kind.COLUMN if is_share else Kind.ROW)
    order = np.lexsort((W.senders, W.receivers))
    receivers = W.receivers[order]
    return Route(
        n=n,
        edges=len(order),
        is_share=is_share,
        own=W.own,
        starts=np.searchsorted(receivers, np.arange(n + 1)),
        receivers=receivers,
        senders=W.senders[order],
        weights=W.weights[order],
    )


def routes_of(spec: RunSpec, n: int) -> list[Route] | None:
    """All that rounds of n peers take, a period of them; None where every round has another graph."""
    options, seed = spec.gossip.topology, spec.run.seed
    if options.is_redrawn:
        return None
    plans = [topology.plan(options, t, n, seed) for t in range(topology.period(options, n))]
    return [route(plan, mixer_of(spec)) for plan in plans]
