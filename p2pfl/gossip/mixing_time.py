"""How fast a topology mixes: rounds to consensus, and the spectral gap.

`n` peers.  Receiver form: `W[i, j]` is the weight i puts on j.
"""

from collections.abc import Iterator

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip.families import name_of
from p2pfl.gossip.mixing import Floats, Kind, gap_over
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import Plan, is_strongly_connected, matrix, plan, sweep

__all__ = ["mixing_rounds", "gap_per_round"]

# A topology this slow is a mistake: a ring of 50 takes 2,753 rounds to 1e-6, exponential on 1,024 69.
_MOST_ROUNDS = 10_000
# Largest n whose matrices are multiplied out: 2,048 is 32 MiB and .13 s a product.
_DENSE_PEERS = 2048
# Largest n whose eigenvalues are sought: 512 take .3 s.
_EIGEN_PEERS = 512


def mixing_rounds(options: TopologyOptions, n: int, seed: int, tolerance: float) -> int:
    """Rounds of push-sum, from round 0, until every peer holds every other's start at its share 1/n.

    Precisely: the least T with |n P[i, j]/w_i - 1| <= tolerance for all i, j, where P is the product of the
    first T column-stochastic matrices and w = P 1.  Then |z_i - mean| <= tolerance * mean |x_j(0)|, whatever
    the start; 1e-6 is as good as exact in float32.  The error never grows from one round to the next.
    Circulant kinds cost O(n degree) a round; others O(n^3), up to 2,048 peers.
    Raises ConfigError when the graph is not connected, needs more than 10,000 rounds, or is too large.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"a mixing tolerance of {tolerance}, expected a number between 0 and 1")
    first = sweep(options, n, seed)
    if not is_strongly_connected(*first):
        raise ConfigError(
            f"{name_of(options, n)} is not strongly connected: some peer never hears of some other; add edges"
        )
    if all(plan.offsets is not None for plan in first):
        errors = _circulant_errors(options, n, seed)
    elif n > _DENSE_PEERS:
        raise ConfigError(
            f"{name_of(options, n)} is too large to multiply out; ask with at most {_DENSE_PEERS} peers"
        )
    elif options.is_redrawn or len(first) > 1:
        errors = _changing_errors(options, n, seed)
    else:
        return _static_rounds(options, first[0], tolerance)
    for T, error in zip(range(_MOST_ROUNDS + 1), errors, strict=False):
        if error <= tolerance:
            return T
    raise _too_slow(options, n, tolerance)


def gap_per_round(options: TopologyOptions, n: int, seed: int, kind: Kind = Kind.COLUMN) -> float | None:
    """The spectral gap 1 - |lambda_2|: in the long run a round leaves |lambda_2| of the distance to the mean.

    A plan that varies counts by the product P of the T matrices of `sweep`: 1 - |lambda_2(P)|^(1/T).
    returns: 0..1, 1 for a single peer and where a sweep is exact; None when the graph is not circulant and
    has more than 512 peers.
    The exponential graph of an even n has 2/(1 + ceil(log2 n)): Ying et al. 2021, arXiv:2110.13363.

    >>> round(gap_per_round(TopologyOptions(kind="exponential"), 8, seed=0), 3)
    0.5
    """
    plans = sweep(options, n, seed)
    if all(one.offsets is not None for one in plans) and n > 1:
        # A circulant W has the Fourier transform of its first column as eigenvalues, the first of them 1.
        moduli = np.ones(n)
        for one in plans:
            moduli *= np.abs(np.fft.fft(_column(one)))
        return float(max(0.0, 1.0 - float(moduli[1:].max()) ** (1 / len(plans))))
    if n > _EIGEN_PEERS:
        return None
    return gap_over([matrix(one, kind if kind in one.kinds else Kind.ROW) for one in plans])


def _column(plan: Plan) -> Floats:
    """What peer 0 gives to each, (n,): the first column of a circulant W."""
    column = np.zeros(plan.n)
    column[0], column[list(plan.out_neighbours(0))] = plan.fractions(0)
    return column


def _circulant_errors(options: TopologyOptions, n: int, seed: int) -> Iterator[float]:
    """The error after 0, 1, 2, ... rounds of a circulant topology.

    W is doubly stochastic, so w = 1, and P is circulant, so its first column says all.
    """
    column = np.zeros(n)
    column[0] = 1.0
    for t in range(_MOST_ROUNDS + 1):
        yield float(np.abs(n * column - 1).max())
        now = plan(options, t, n, seed)
        keep, parts = now.fractions(0)
        rolled = (c * np.roll(column, j) for j, c in zip(now.out_neighbours(0), parts, strict=True))
        column = sum(rolled, keep * column)


def _changing_errors(options: TopologyOptions, n: int, seed: int) -> Iterator[float]:
    product = np.eye(n)
    for t in range(_MOST_ROUNDS + 1):
        yield _error(product)
        product = matrix(plan(options, t, n, seed)) @ product


def _static_rounds(options: TopologyOptions, plan: Plan, tolerance: float) -> int:
    """The least T by doubling W until W^(2^k) is close enough, then halving back: the error never grows."""
    if plan.n == 1:
        return 0
    powers = [matrix(plan)]
    while _error(powers[-1]) > tolerance:
        if 2 ** len(powers) > 2 * _MOST_ROUNDS:
            raise _too_slow(options, plan.n, tolerance)
        powers.append(powers[-1] @ powers[-1])
    T, product = 0, np.eye(plan.n)
    for k in reversed(range(len(powers) - 1)):
        further = powers[k] @ product
        if _error(further) > tolerance:
            T, product = T + 2**k, further
    if T + 1 > _MOST_ROUNDS:
        raise _too_slow(options, plan.n, tolerance)
    return T + 1


def _error(product: Floats) -> float:
    return float(np.abs(len(product) * product / product.sum(axis=1)[:, None] - 1).max())


def _too_slow(options: TopologyOptions, n: int, tolerance: float) -> ConfigError:
    return ConfigError(
        f"{name_of(options, n)} does not mix to {tolerance:g} within {_MOST_ROUNDS} rounds; add links"
    )
