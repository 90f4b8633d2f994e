"""Random words by counter: what peer i draws in round t follows from the seed, i and t, whoever draws first.

A block of four 32-bit words is a function of key = the seed and counter = (block, peer, round, stream), so
neither the order of peers, nor how many come together, nor how they are spread over threads or machines can
change a draw, and no peer holds a generator.  `m` peers.
Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", Philox4x32-10.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTIVE",
    "BATCHES",
    "KEY_STEPS",
    "MULTIPLIERS",
    "PARTITION",
    "PUSH",
    "ROUNDS",
    "SAMPLE",
    "START",
    "Words",
    "below",
    "chosen",
    "key_of",
    "philox4x32",
    "shuffled",
    "words",
]

Words = NDArray[np.uint32]

# The paper's: multipliers of the two halves, what each round adds to the key, and how many rounds.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# The last word of the counter: what a draw is for.
BATCHES, PARTITION, ACTIVE, SAMPLE, START, PUSH = 1, 2, 3, 4, 5, 6

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def key_of(seed: int) -> tuple[int, int]:
    """The two key words of a seed below 2^64, the low one first."""
    return seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """The block of each counter.   counter: (..., 4).   returns: (..., 4)."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (
            p1 >> _HALF ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            p0 >> _HALF ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = k0 + KEY_STEPS[0] & 0xFFFFFFFF, k1 + KEY_STEPS[1] & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(
    seed: int, stream: int, number: int | NDArray[np.integer], peers: NDArray[np.integer], count: int
) -> Words:
    """The first `count` words of each peer's stream in round `number`, or in that of its own, (m, count)."""
    blocks = -(-count // 4)
    counter = np.empty((len(peers), blocks, 4), np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = np.asarray(peers, np.uint32)[:, None]
    counter[..., 2], counter[..., 3] = np.reshape(number, (-1, 1)), stream
    return philox4x32(counter, key_of(seed)).reshape(len(peers), 4 * blocks)[:, :count]


def below(drawn: Words, bound: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Words as numbers 0..bound-1: word x bound / 2^32, off from even by at most bound / 2^32.

    bound: at most 2^32.   Source: Lemire 2019, arXiv:1805.10941, without the rejection.
    """
    return (drawn.astype(np.uint64) * np.asarray(bound, np.uint64) >> _HALF).astype(np.int64)


def chosen(seed: int, stream: int, number: int, n: int, m: int) -> NDArray[np.int64]:
    """M different numbers of 0..n-1, ascending, every such set as likely.   Raises ValueError when m > n.

    O(m), and O(n) where m is more than a quarter of n.
    """
    if m > n:
        raise ValueError(f"{m} different numbers of {n}")
    if 4 * m > n:
        order = np.argsort(words(seed, stream, number, np.arange(n), 1)[:, 0], kind="stable")
        return np.sort(order[:m])
    found, tried = np.zeros(0, np.int64), 0
    while len(found) < m:
        # A third more than are wanted: at most a quarter of what is drawn is there already.
        fresh = np.arange(tried, tried + 16 + m // 3 if tried else m + 16)
        tried += len(fresh)
        drawn = np.concatenate([found, below(words(seed, stream, number, fresh, 1)[:, 0], n)])
        first = np.unique(drawn, return_index=True)[1]
        found = drawn[np.sort(first)]
    return np.sort(found[:m])


def shuffled(drawn: Words) -> NDArray[np.int64]:
    """A permutation of 0..c-1 from each row of c words, (m, c): Fisher and Yates from the last place down.

    The word in place w decides place c-1-w; the last word is not used.
    """
    m, c = drawn.shape
    order = np.tile(np.arange(c), (m, 1))
    everyone = np.arange(m)
    for j in range(c - 1, 0, -1):
        other = below(drawn[:, c - 1 - j], j + 1)
        order[everyone, j], order[everyone, other] = order[everyone, other], order[everyone, j].copy()
    return order
