"""Row-, column- and doubly-stochastic weights on a graph, their spectra, and the one kernel that mixes.

Notation: `n` peers, `m` directed edges, `d` parameters.  Receiver form, x+ = W x: `W[i, j]` is the weight
that receiver i puts on sender j.  Column-stochastic (columns sum to 1) conserves the sum; row-stochastic
(rows sum to 1) keeps a consensus; doubly-stochastic does both.  Weights live on edge lists; `dense` is for
analysis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError

__all__ = [
    "Floats",
    "Vectors",
    "Indices",
    "Kind",
    "Mixer",
    "MixingMatrix",
    "uniform_fraction",
    "metropolis_weight",
    "uniform_columns",
    "metropolis_hastings",
    "dense",
    "sigma2",
    "spectral_gap",
    "gap_over",
    "combine",
]

Floats: TypeAlias = NDArray[np.float64]
Vectors: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

# Elements mixed at a time: a 512 KiB float64 accumulator stays in L2.  Six inputs of 25e6 took .112 s at
# 2**16, .117 at 2**15, .128 at 2**18 (one thread).
_BLOCK = 2**16
# An eigenvalue that is smaller is 0: products of some ten matrices in float64 are off by 1e-15 or so.
_EXACT = 1e-13


class Kind(StrEnum):
    """What the weights on a graph can be.

    Any graph carries row- and column-stochastic weights; only a symmetric or a regular one carries
    doubly-stochastic weights by the rules here.
    """

    ROW = "row-stochastic"
    COLUMN = "column-stochastic"
    DOUBLY = "doubly-stochastic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """How models mix, as the peer needs to know it.

    `requires`: what the plan's graph must carry.  `delivery`: "share" is conserved and absorbed exactly once
    (push-sum's x and w); "state" is latest-wins (D-PSGD's models).
    """

    name: str
    requires: frozenset[Kind]
    delivery: Literal["share", "state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingMatrix:
    """W on an edge list: `W[receivers[e], senders[e]] = weights[e]`, `W[i, i] = own[i]`.

    senders, receivers: (m,) int64, no self-loops, no duplicates.   weights: (m,).   own: (n,).
    """

    n: int
    senders: Indices
    receivers: Indices
    weights: Floats
    own: Floats


def uniform_fraction(out_degree: int) -> float:
    """The part of its mass a sender gives each out-neighbour, and keeps: 1/(out_degree + 1)."""
    return 1.0 / (out_degree + 1)


def metropolis_weight(degree: int, neighbour_degree: int) -> float:
    """The Metropolis-Hastings weight of an edge: 1/(1 + max(degree, neighbour_degree)).

    Source: Xiao, Boyd 2004, "Fast linear iterations for distributed averaging", eq. 11 (with the +1 that
    keeps the diagonal positive).
    """
    return 1.0 / (1 + max(degree, neighbour_degree))


def uniform_columns(n: int, senders: Indices, receivers: Indices) -> MixingMatrix:
    """Column-stochastic weights: every sender splits evenly over its out-neighbours and itself.

    Source: Kempe, Dobra, Gehrke 2003, "Gossip-based computation of aggregate information", section 2.
    """
    own = 1.0 / (1 + np.bincount(senders, minlength=n))
    return MixingMatrix(n=n, senders=senders, receivers=receivers, weights=own[senders], own=own)


def metropolis_hastings(n: int, senders: Indices, receivers: Indices) -> MixingMatrix:
    """Metropolis-Hastings weights on in-degrees; the diagonal closes the rows.

    Symmetric, so doubly stochastic, when every edge has its reverse; doubly stochastic too when every in-
    and out-degree is the same; row-stochastic on any other digraph.
    """
    degrees = np.bincount(receivers, minlength=n)
    weights = 1.0 / (1 + np.maximum(degrees[senders], degrees[receivers]))
    own: Floats = 1.0 - np.bincount(receivers, weights=weights, minlength=n).astype(np.float64)
    return MixingMatrix(n=n, senders=senders, receivers=receivers, weights=weights, own=own)


def dense(W: MixingMatrix) -> Floats:
    """W as an (n, n) float64 array, for analysis and tests."""
    matrix = np.diag(W.own)
    matrix[W.receivers, W.senders] = W.weights
    return matrix


def sigma2(W: Floats) -> float:
    """The spectral norm of W - J, J = 11'/n: the most of ||x - mean|| that one round of a doubly-stochastic
    W can leave.

    W: (n, n).   returns: 0 when one round is exact, below 1 when every round contracts.  O(n^3).
    """
    return float(np.linalg.norm(W - 1.0 / len(W), 2))


def spectral_gap(W: Floats) -> float:
    """1 - |lambda_2|, the second largest eigenvalue modulus: push-sum's error shrinks by |lambda_2| a round.

    W: (n, n), row- or column-stochastic.   returns: 1 for a single peer; 0 when W is not connected.  O(n^3).
    """
    moduli = np.sort(np.abs(np.linalg.eigvals(W)))
    return 1.0 if len(W) == 1 else max(0.0, 1.0 - float(moduli[-2]))


def gap_over(matrices: Sequence[Floats]) -> float:
    """The spectral gap of one of T rounds that repeat: 1 - |lambda_2(P)|^(1/T) for their product P.

    matrices: (n, n) each, row- or column-stochastic, in the order of the rounds.   returns: 0..1, and 1 where
    P is exact but for rounding.  O(T n^3).
    """
    product = np.eye(len(matrices[0]))
    for W in matrices:
        product = W @ product
    left = 1.0 - spectral_gap(product)
    return 1.0 if left < _EXACT else float(1.0 - left ** (1 / len(matrices)))


def combine(terms: Sequence[Vectors], coefficients: Sequence[Floats | None]) -> Vectors:
    """The sum of c_k[i] * terms_k[i, :], accumulated in float64 in the given order, then cast to float32.

    terms: k arrays (n, d) float32.   coefficients: k arrays (n,) float64, None for all ones.
    returns: (n, d) float32, new.  The same terms in the same order give the same bits, however many rows
    come together.  O(k n d); temporaries stay under 2 MiB.
    Raises AggregationError without terms, or when shapes or types differ.
    """
    if not terms or len(terms) != len(coefficients):
        raise AggregationError(
            f"{len(terms)} arrays and {len(coefficients)} coefficients; give one of each, at least"
        )
    n, d = _shape_of(terms[0])
    for term, coefficient in zip(terms, coefficients, strict=True):
        _check(term, coefficient, n, d)
    out = np.empty((n, d), np.float32)
    accumulator, product = np.empty(min(_BLOCK, n * d)), np.empty(min(_BLOCK, n * d))
    for rows, columns in _blocks(n, d):
        shape = out[rows, columns].shape
        total = accumulator[: shape[0] * shape[1]].reshape(shape)
        scaled = product[: shape[0] * shape[1]].reshape(shape)
        for k, (term, coefficient) in enumerate(zip(terms, coefficients, strict=True)):
            block: NDArray[Any] = term[rows, columns]
            if coefficient is not None:
                block = np.multiply(block, coefficient[rows, None], out=scaled)
            if k == 0:
                total[...] = block
            else:
                np.add(total, block, out=total)
        out[rows, columns] = total
    return out


def _shape_of(term: Vectors) -> tuple[int, int]:
    if term.ndim != 2:
        raise AggregationError(f"an array of shape {term.shape}, expected (peers, parameters)")
    return term.shape[0], term.shape[1]


def _check(term: Vectors, coefficient: Floats | None, n: int, d: int) -> None:
    if term.shape != (n, d) or term.dtype != np.float32:
        raise AggregationError(
            f"an array of shape {term.shape} {term.dtype} among those of shape ({n}, {d}) float32"
        )
    if coefficient is not None and (coefficient.shape != (n,) or coefficient.dtype != np.float64):
        raise AggregationError(
            f"coefficients {coefficient.shape} {coefficient.dtype}, expected one float64 a peer, ({n},)"
        )


def _blocks(n: int, d: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover (n, d), each of at most _BLOCK elements: whole rows, or a piece of one row."""
    if n == 0 or d == 0:
        return
    if d >= _BLOCK:
        for i in range(n):
            for start in range(0, d, _BLOCK):
                yield slice(i, i + 1), slice(start, min(start + _BLOCK, d))
        return
    height = max(1, _BLOCK // d)
    for i in range(0, n, height):
        yield slice(i, min(i + height, n)), slice(0, d)
