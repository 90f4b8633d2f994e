"""Base-(k+1) graphs: at most k neighbours a round, and after a few rounds the exact average of any number of
peers.

A graph here is a sequence of rounds that repeats.  Every W is symmetric and doubly stochastic; the product of
all rounds is J = 11'/n.  `n` peers, `k` neighbours at most, `b` = k + 1, `m` edges of a round.
Source: Takezawa, Sato, Bao, Niwa, Yamada 2023, arXiv:2305.11420: the k-peer hyper-hypercube, the simple base
graph and the base graph (algorithms 1 to 3).  Peers that have no edge in a round and could mix among
themselves do, as in its authors' experiments.

The simple base graph.  n = a_1 b^p_1 + ... + a_L b^p_L with p_1 > p_2 > ... and 0 < a_l <= k splits the peers
into V_1, ..., V_L, and V_l into a_l blocks of b^p_l.  First every V_l averages within itself, exactly after
the rounds of V_1.  Then V_1, V_2, ... meet, one a round, all peers of the sets after them, one of every block
each: these then hold an average that counts V_l in full, and each block of V_l has the mean of all n.  From
there on a block averages within itself, for p_l rounds.
"""

import math
from functools import lru_cache
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.graphs import Graph, weighted
from p2pfl.gossip.mixing import Floats, Indices

__all__ = ["base", "base_rounds", "simple_base", "simple_base_rounds"]

# Undirected edges: their ends and the weight of each, (m,).
_Edges: TypeAlias = tuple[Indices, Indices, Floats]


def base(n: int, k: int, t: int) -> Graph:
    """Round t of the Base-(k+1) graph.

    n = p q, where p has no prime factor above k + 1 and q none below: simple base graphs of q peers each,
    then hyper-hypercubes of p peers, one of each; the simple base graph of all n where that is shorter.
    """
    p = _smooth_part(n, k)
    inner, whole = _length(n // p, k), _length(n, k)
    if whole < inner + len(_factors(p, k + 1)):
        return simple_base(n, k, t)
    t %= base_rounds(n, k)
    if t < inner:
        return _graph(n, _placed(_simple(n // p, k, t), n // p * np.arange(p)))
    return _graph(n, _placed(_cube(p, k, t - inner), np.arange(n // p), stride=n // p))


def base_rounds(n: int, k: int) -> int:
    """After how many rounds the Base-(k+1) graph of n peers is exact: 1 to 2 log_{k+1}(n) + 2."""
    p = _smooth_part(n, k)
    return max(1, min(_length(n, k), _length(n // p, k) + len(_factors(p, k + 1))))


def simple_base(n: int, k: int, t: int) -> Graph:
    """Round t of the Simple Base-(k+1) graph."""
    return _graph(n, _simple(n, k, t % simple_base_rounds(n, k)))


def simple_base_rounds(n: int, k: int) -> int:
    """After how many rounds the Simple Base-(k+1) graph of n peers is exact; at least 1."""
    return max(1, _length(n, k))


def _length(n: int, k: int) -> int:
    """The rounds of the simple base graph, 0 for a single peer."""
    if _smooth_part(n, k) == n:
        return len(_factors(n, k + 1))
    count, power = _digits(n, k + 1)[0]
    return len(_factors(count * (k + 1) ** power, k + 1)) + 1 + power


def _simple(n: int, k: int, t: int) -> _Edges:
    """Round t of the simple base graph on 0..n-1, t below its number of rounds."""
    if _smooth_part(n, k) == n:
        return _cube(n, k, t)
    b, digits = k + 1, _digits(n, k + 1)
    sizes = [count * b**power for count, power in digits]
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    opening, last = len(_factors(sizes[0], b)), len(sizes) - 1
    if t < opening:
        return _joined(
            [
                _placed(_cube(size, k, t % rounds), np.array([start]))
                for size, start in zip(sizes, starts, strict=True)
                if (rounds := len(_factors(size, b)))
            ]
        )
    meeting, found = t - opening, []
    if meeting < last:
        others = sum(sizes[meeting + 1 :])
        found += _met(sizes[meeting], others, digits[meeting], starts[meeting], b)
    for level, (count, power) in enumerate(digits):
        # The last set has no meeting of its own.
        since = meeting - level - (level < last)
        if since < 0:
            continue
        # Blocks of one peer have nothing to mix: then the whole set does.
        blocks, size = (1, count) if power == 0 else (count, b**power)
        if rounds := len(_factors(size, b)):
            places = starts[level] + size * np.arange(blocks)
            found.append(_placed(_cube(size, k, since % rounds), places))
    return _joined(found)


def _met(size: int, others: int, digit: tuple[int, int], start: int, b: int) -> list[_Edges]:
    """V_l, `size` peers from `start`, meets the `others` that follow; its peers that meet nobody mix."""
    count, power = digit
    after = np.arange(start + size, start + size + others)
    ends = start + b**power * (1 + np.arange(count))
    met = ends[:, None] - 1 - np.arange(others)
    edges = (np.tile(after, count), met.ravel(), np.full(met.size, size / (size + others) / count))
    left = np.setdiff1d(np.arange(start, start + size), met)
    whole = len(left) // b * b
    return [edges, _cliques(left[:whole].reshape(-1, b)), _cliques(left[None, whole:])]


def _cliques(groups: NDArray[np.int64]) -> _Edges:
    """Everybody of a group averages with everybody.   groups: one a row."""
    size = groups.shape[1]
    pairs = np.array(list(combinations(range(size), 2)), np.int64).reshape(-1, 2)
    first, second = groups[:, pairs[:, 0]].ravel(), groups[:, pairs[:, 1]].ravel()
    return first, second, np.full(len(first), 1.0 / max(1, size))


def _cube(n: int, k: int, t: int) -> _Edges:
    """Round t of the k-peer hyper-hypercube: peers average that differ only in digit t, in mixed radix."""
    factors = _factors(n, k + 1)
    if not factors:
        return _joined([])
    factor, stride = factors[t], math.prod(factors[:t])
    first = np.arange(n).reshape(-1, factor, stride)
    return _cliques(first.transpose(0, 2, 1).reshape(-1, factor))


def _placed(edges: _Edges, starts: Indices, stride: int = 1) -> _Edges:
    """A copy of `edges` at each of `starts`: peer i becomes start + stride i."""
    first, second, weights = edges
    places = starts[:, None]
    return (
        (places + stride * first).ravel(),
        (places + stride * second).ravel(),
        np.tile(weights, len(starts)),
    )


def _joined(found: list[_Edges]) -> _Edges:
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    first, second, weights = (np.concatenate(column) for column in zip(nothing, *found, strict=True))
    return first, second, weights


def _graph(n: int, edges: _Edges) -> Graph:
    first, second, weights = edges
    both = np.concatenate([first, second]), np.concatenate([second, first])
    return weighted(n, *both, np.concatenate([weights, weights]))


def _digits(n: int, b: int) -> list[tuple[int, int]]:
    """(a_l, p_l), p_l falling, of n = sum of a_l b^p_l with 0 < a_l < b."""
    found, power = [], 0
    while n:
        n, digit = divmod(n, b)
        if digit:
            found.append((digit, power))
        power += 1
    return found[::-1]


def _smooth_part(n: int, k: int) -> int:
    """The largest divisor of n without a prime factor above k + 1."""
    rest = n
    for factor in range(2, min(k + 1, n) + 1):
        while rest % factor == 0:
            rest //= factor
    return n // rest


@lru_cache(maxsize=4096)
def _factors(n: int, b: int) -> tuple[int, ...]:
    """As few factors of n as there are, each 2 to b, ascending; n has no prime factor above b.

    >>> _factors(72, 9)
    (8, 9)
    """
    if n <= b:
        return (n,) if n > 1 else ()
    ways: list[tuple[int, ...]] = [
        (*_factors(n // factor, b), factor) for factor in range(b, 1, -1) if n % factor == 0
    ]
    fewest = min(ways, key=len)
    return tuple(sorted(fewest))
