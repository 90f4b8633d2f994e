"""Topologies as a user writes them, and such as a user should not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

__all__ = ["forgetful", "islands", "itself", "turning", "uneven", "whatever"]

_given: dict[str, Any] = {}


def turning(n: int, t: int, seed: int) -> list[list[int]]:
    """I sends to i + 1 + t, modulo n, but never to itself."""
    hop = 1 + t % max(1, n - 1)
    return [[(i + hop) % n] if n > 1 else [] for i in range(n)]


def uneven(n: int, t: int, seed: int) -> list[dict[int, float]]:
    """Half of what it holds to the next, and a tenth to another that the seed says.   n: 3 or more."""
    hops: list[int] = np.random.default_rng([seed, t]).integers(2, n, size=n).tolist()
    others = [(i + hop) % n for i, hop in enumerate(hops)]
    return [{(i + 1) % n: 0.5, j: 0.1} for i, j in enumerate(others)]


def forgetful(n: int, t: int, seed: int) -> list[list[int]]:
    """Draws from the one generator that nobody has seeded."""
    return [random.sample([j for j in range(n) if j != i], 2) for i in range(n)]


def islands(n: int, t: int, seed: int) -> list[list[int]]:
    """The even among themselves, and the odd."""
    return [[j for j in range(n) if j != i and (i + j) % 2 == 0] for i in range(n)]


def itself(n: int, t: int, seed: int) -> list[list[int]]:
    """Each to itself."""
    return [[i] for i in range(n)]


def whatever(n: int, t: int, seed: int) -> Any:
    """What a test put there."""
    return _given["entries"]
