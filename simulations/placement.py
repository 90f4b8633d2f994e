"""Which peers are Byzantine, how they came in, and whom they reach: the same in every engine.

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
from p2pfl.ids import PeerId, RunId
from p2pfl.run import RunSpec, run_id
from p2pfl.trust import admission, membership
from p2pfl.trust.certificates import LASTS_S, Certificate, countersign, issue_certificate
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import Membership

from .attacks import AttackOptions
from .network import Partition

__all__ = [
    "VICTIM",
    "admitted",
    "cut_off",
    "fiedler",
    "honest_count",
    "placed",
    "quorum_of",
    "slowest",
    "talked_in",
]

# The position of the peer that an eclipse is for.
VICTIM = 0
# Admission is long past, and lasts longer than any run, in virtual seconds.
_CERTIFICATE_S = 1e9

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
    if topology.period(options, honest) > 1 or options.is_redrawn:
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


def quorum_of(founders: int) -> int:
    """How many of the founders admit somebody where nothing else is agreed: the least above a half."""
    return founders // 2 + 1


def talked_in(
    run: RunId,
    founders: Sequence[Identity],
    guests: Sequence[PeerId],
    *,
    now: float,
    lasts_s: float = LASTS_S,
) -> list[Certificate]:
    """A certificate for each Sybil: the same quorum of `founders` has signed for every one of them, the same
    founder first, as where one person talks them into it again and again.

    now: seconds since 1970, or of virtual time.   Raises ConfigError when a certificate cannot hold a quorum.
    """
    quorum = quorum_of(len(founders))
    made = []
    for number, guest in enumerate(guests):
        nonce = number.to_bytes(16, "big")
        certificate = issue_certificate(
            founders[0], run=run, subject=guest, now=now, nonce=nonce, lasts_s=lasts_s
        )
        for founder in founders[1:quorum]:
            certificate = countersign(certificate, founder)
        made.append(certificate)
    return made


def admitted(spec: RunSpec, attack: AttackOptions, keys: Sequence[Identity]) -> Membership | None:
    """The membership that a world begins with: None makes everybody a founder.

    Sybils are guests (`talked_in`), and the honest are the founders.   keys: of all peers, in order.
    Raises ConfigError when a quorum of the honest cannot sign one certificate.
    """
    if attack.kind != "sybil" or not attack.byzantine:
        return None
    run, honest = run_id(spec), honest_count(attack, len(keys))
    state = membership.genesis(run, [key.peer_id for key in keys[:honest]], quorum_of(honest))
    guests = [key.peer_id for key in keys[honest:]]
    for certificate in talked_in(run, keys[:honest], guests, now=0.0, lasts_s=_CERTIFICATE_S):
        state, _ = admission.admit(state, certificate, 0.0)
    return state


def cut_off(attack: AttackOptions, peers: int, fit_s: float, rounds: int) -> tuple[Partition, ...]:
    """The cuts that attackers make: an eclipse leaves the first peer nobody but them, until training ends."""
    if attack.kind != "eclipse" or not attack.byzantine:
        return ()
    honest = honest_count(attack, peers)
    attackers = range(honest, peers)
    others = [i for i in range(peers) if i != VICTIM]
    return (
        Partition(
            start_s=attack.starts_at * fit_s, end_s=rounds * fit_s, groups=[[VICTIM, *attackers], others]
        ),
    )


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
