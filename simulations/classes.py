"""Classes of peers: how much slower some compute than others, and what lies between some and the network.

    [simulation.speed]
    slow = { peers = 5, factor = 5 }                       # each of the five takes five times as long
    rest = { share = 0.5, factor = [0.8, 1.2] }            # a factor for each, drawn uniformly

    [simulation.access]
    mobile = { share = 0.2, latency_s = [0.05, 0.3], loss = 0.02, bandwidth_mbit_s = 10 }

Who is in a class is drawn under the run's seed.  A peer is in at most one class of a table, or in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.net.link_model import LinkModel

__all__ = ["AccessClass", "Lines", "SpeedClass", "factors", "members"]

# Keep these draws apart from every other use of a run's seed: "sped" and "accs" in ASCII.
_SPEED, _ACCESS = 0x73706564, 0x61636373

_Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
_Count: TypeAlias = Annotated[int, Meta(ge=0)]


class SpeedClass(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`peers` of them, or that `share` of all, take `factor` times as long for everything they compute.

    factor: a number, or [least, greatest], from which each has its own.
    """

    peers: _Count = 0
    share: _Share = 0.0
    factor: float | tuple[float, float] = 1.0

    def __post_init__(self) -> None:
        _check_size(self.peers, self.share)
        low, high = _ends(self.factor)
        if not 0 < low <= high < float("inf"):
            raise ValueError("factor is a number above 0, or [least, greatest] of such numbers")


class AccessClass(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`peers` of them, or that `share` of all, reach the network over a line of their own, both ways alike.

    Between two peers the latencies of the network and of both lines add up, a message must get past the loss
    of each, and the least bandwidth that is limited counts.   latency_s: a number, or [least, greatest].
    """

    peers: _Count = 0
    share: _Share = 0.0
    latency_s: float | tuple[float, float] = 0.0
    loss: float = 0.0
    bandwidth_mbit_s: float = 0.0

    def __post_init__(self) -> None:
        _check_size(self.peers, self.share)
        try:
            LinkModel(latency_s=_ends(self.latency_s), loss=self.loss, bandwidth_mbit_s=self.bandwidth_mbit_s)
        except ConfigError as error:
            raise ValueError(str(error)) from error


def members(
    classes: Mapping[str, SpeedClass] | Mapping[str, AccessClass], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The number of the class of each peer, (n,), -1 for none.

    Raises ConfigError when the classes have more than `n` peers together.
    """
    sizes = [c.peers or round(c.share * n) for c in classes.values()]
    if sum(sizes) > n:
        raise ConfigError(
            f"the classes {', '.join(classes)} have {sum(sizes)} peers, and there are {n};"
            " lower their peers or share"
        )
    order, of = rng.permutation(n), np.full(n, -1, np.int64)
    for number, (first, size) in enumerate(zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False)):
        of[order[first : first + size]] = number
    return of


def factors(classes: Mapping[str, SpeedClass], n: int, seed: int) -> NDArray[np.float64]:
    """How many times as long each peer takes, (n,).  Raises ConfigError."""
    rng = np.random.default_rng([seed, _SPEED])
    of, u = members(classes, n, rng), rng.random(n)
    ends = np.array([*(_ends(c.factor) for c in classes.values()), (1.0, 1.0)])
    return np.asarray(ends[of, 0] + (ends[of, 1] - ends[of, 0]) * u)


class Lines:
    """What lies between two peers: the network, and each end's line."""

    def __init__(self, classes: Mapping[str, AccessClass], network: LinkModel, n: int, seed: int) -> None:
        """network: what all have in common.  Raises ConfigError."""
        self._of = members(classes, n, np.random.default_rng([seed, _ACCESS])).tolist()
        self._classes, self._network = list(classes.values()), network
        self._models: dict[tuple[int, int], LinkModel] = {}

    def between(self, a: int, b: int) -> LinkModel:
        """The link from peer `a` to peer `b`."""
        key = self._of[a], self._of[b]
        model = self._models.get(key)
        if model is None:
            ends = [self._classes[number] for number in key if number >= 0]
            model = self._models[key] = _joined(self._network, ends)
        return model


def _joined(network: LinkModel, ends: list[AccessClass]) -> LinkModel:
    latencies = [network.latency_s, *(_ends(line.latency_s) for line in ends)]
    arrives = 1.0 - network.loss
    for line in ends:
        arrives *= 1.0 - line.loss
    limits = [b for b in (network.bandwidth_mbit_s, *(line.bandwidth_mbit_s for line in ends)) if b]
    return LinkModel(
        latency_s=(sum(low for low, _ in latencies), sum(high for _, high in latencies)),
        loss=network.loss if not ends else 1.0 - arrives,
        duplication=network.duplication,
        reorder=network.reorder,
        bandwidth_mbit_s=min(limits, default=0.0),
    )


def _ends(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _check_size(peers: int, share: float) -> None:
    if (peers > 0) == (share > 0):
        raise ValueError("a class has either a number of peers, peers, or a share of all, share")
