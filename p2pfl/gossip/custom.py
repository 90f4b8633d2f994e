"""A topology of the user's own: a function that says who sends to whom in round t.

It is called as `function(n=..., t=..., seed=...)` and gives one entry for each of the n peers: the positions
it sends to, or a mapping from these to the part that it gives of what it holds.  Every node calls it for
itself, so what it gives may follow from its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip.graphs import Graph
from p2pfl.user_code import imported

__all__ = ["custom"]


def custom(function: str, n: int, t: int, seed: int) -> Graph:
    """The graph of n peers that the function named "module:attribute" gives for round t.

    It is asked twice, so that one which draws from something else than its seed is found out.
    Raises ConfigError that says what it gave and what was expected.
    """
    call = imported(function, "plan function")
    first, second = (_graph(function, _called(call, function, n, t, seed), n, t) for _ in range(2))
    if first != second:
        raise ConfigError(
            f"{function} gave two graphs for n={n}, t={t}, seed={seed}: nodes would not agree; draw from"
            " numpy.random.default_rng([seed, t]) alone, and keep nothing between calls"
        )
    return first


def _called(call: Any, function: str, n: int, t: int, seed: int) -> Any:
    try:
        # By name, so that an agreement cannot call just any function.
        return call(n=n, t=t, seed=seed)
    except ConfigError:
        raise
    except Exception as error:
        # It is the user's code, and may raise anything.
        raise ConfigError(
            f"{function}(n={n}, t={t}, seed={seed}) raised {type(error).__name__}: {error}"
        ) from error


def _graph(function: str, gave: Any, n: int, t: int) -> Graph:
    where = f"{function} for n={n}, t={t}"
    if not isinstance(gave, Sequence) or isinstance(gave, str) or len(gave) != n:
        found = len(gave) if isinstance(gave, Sequence) else f"a {type(gave).__name__}"
        raise ConfigError(f"{where} gave {found}, expected a list of {n} entries, one for each peer")
    rows = [_row(where, i, entry, n) for i, entry in enumerate(gave)]
    has_parts = {parts is not None for _, parts in rows}
    if len(has_parts) > 1:
        raise ConfigError(f"{where} gave lists and mappings; give one kind for all peers")
    return Graph(
        n=n,
        neighbours=tuple(peers for peers, _ in rows),
        neighbour_weights=tuple(parts or () for _, parts in rows) if has_parts == {True} else None,
    )


def _row(where: str, i: int, entry: Any, n: int) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    if isinstance(entry, str) or not isinstance(entry, (Mapping, Sequence, set, frozenset, np.ndarray)):
        raise ConfigError(f"{where}: entry {i} is a {type(entry).__name__}, expected a list of positions")
    peers = list(entry)
    for j in peers:
        if isinstance(j, bool) or not isinstance(j, (int, np.integer)) or not 0 <= j < n:
            raise ConfigError(f"{where}: entry {i} names {j!r}, expected positions from 0 to {n - 1}")
    listed = sorted(int(j) for j in peers)
    if i in listed:
        raise ConfigError(
            f"{where}: entry {i} names {i} itself; every peer keeps its part without being told"
        )
    if len(set(listed)) < len(listed):
        raise ConfigError(f"{where}: entry {i} names a peer twice: {listed}")
    if not isinstance(entry, Mapping):
        return tuple(listed), None
    parts = [entry[j] for j in listed]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (int, float, np.number)) or not 0 < part < 1:
            raise ConfigError(f"{where}: entry {i} gives the part {part!r}, expected a number from 0 to 1")
    if not math.fsum(map(float, parts)) < 1:
        raise ConfigError(
            f"{where}: entry {i} gives parts that sum to {math.fsum(parts):g}; leave the peer one of its own"
        )
    return tuple(listed), tuple(map(float, parts))
