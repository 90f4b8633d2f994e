"""Which peers are Byzantine, and whom they reach: the same in every engine.

The last `byzantine` positions in PeerId order attack.  In a random graph that is as good as any; on a ring
they sit side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.events import Vector
from p2pfl.gossip import topology
from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import Plan
from p2pfl.run import RunSpec

from .attacks import AttackOptions

__all__ = ["fiedler", "honest_count", "placed", "slowest"]

# Peers whose weights are decomposed at most: a second or so.
_DENSE_PEERS = 1024


def honest_count(attack: AttackOptions, peers: int) -> int:
    """How many of `peers` are honest: they are the first.  Raises ConfigError when nobody is."""
    if attack.byzantine >= peers:
        raise ConfigError(
            f"simulation.attack.byzantine is {attack.byzantine} of {peers} peers; leave one that is honest"
        )
    return peers - attack.byzantine


def placed(spec: RunSpec, attack: AttackOptions, peers: int) -> RunSpec:
    """The agreement with the attackers in its topology.

    For `everywhere` the topology that `spec` names is drawn for the honest peers, under the seed of `spec`,
    and written out as explicit edges with each attacker joined to every honest peer; attackers are not joined
    with each other.  Raises ConfigError when that cannot be: nobody is honest, or the graph changes.
    """
    honest = honest_count(attack, peers)
    options, seed = spec.gossip.topology, spec.run.seed
    if attack.placement == "members" or not attack.byzantine:
        return spec
    if topology.period(options, honest) > 1 or options.redraw:
        raise ConfigError(
            f'simulation.attack.placement = "everywhere" needs a graph that stays; {options.kind!r} changes'
        )
    out_edges = topology.plan(options, 0, honest, seed).out_edges
    edges = {(i, j) for i, heard in enumerate(out_edges) for j in heard}
    edges |= {pair for i in range(honest) for k in range(honest, peers) for pair in ((i, k), (k, i))}
    directed = any((j, i) not in edges for i, j in edges)
    pairs = sorted(edges if directed else {pair for pair in edges if pair[0] < pair[1]})
    explicit = TopologyOptions(kind="explicit", edges=tuple(pairs), directed=directed or None)
    gossip = msgspec.structs.replace(spec.gossip, topology=explicit)
    return msgspec.structs.replace(spec, gossip=gossip)


def fiedler(plan: Plan, honest: Sequence[int]) -> tuple[float, Floats]:
    """The slowest disagreement of the peers at positions `honest` of `plan`, mixing among themselves.

    returns: (mu, e), the second smallest eigenvalue and its vector, (h,) of length 1, of the Laplacian
    L = diag(W 1) - W of their part W of the plan's weights, made symmetric.  One round of mixing takes mu of
    it away.   Raises ConfigError beyond 1,024 peers.  O(h^3).
    """
    h = len(honest)
    if h > _DENSE_PEERS:
        raise ConfigError(f"the spectral attack decomposes the graph: at most {_DENSE_PEERS} honest peers")
    if h < 2:
        return 0.0, np.zeros(h)
    place = {i: row for row, i in enumerate(honest)}
    W = np.zeros((h, h))
    for i, row in place.items():
        for j, weight in plan.row(i).items():
            if j in place and j != i:
                W[row, place[j]] = weight
    W = (W + W.T) / 2
    values, vectors = np.linalg.eigh(np.diag(W.sum(axis=1)) - W)
    return float(values[1]), vectors[:, 1]


def slowest(mu: float, e: Floats, models: Vectors, i: int) -> Vector:
    """Row i of mu e e^T X: what one round of mixing takes from that peer's part of the slowest disagreement.

    e: (h,).   models: (h, d), all honest ones, in order.   returns: (d,) float32.
    """
    row: Vector = (mu * e[i] * (e @ models)).astype(np.float32)
    return row
