"""A peer's own part of the network's mass: the push-sum kernels of gossip/ with a batch of one.

Sizes: d parameters, k pooled statistics.  On the wire a body is the k float64 statistics, then the d float32
parameters, little-endian; the weight w rides in the header.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Vector
from p2pfl.gossip import averaging, push_sum
from p2pfl.gossip.push_sum import PushSumState

__all__ = ["Mass", "body_bytes", "pack", "unpack"]


def body_bytes(d: int, k: int) -> int:
    """Bytes of a body with d parameters and k statistics."""
    return 8 * k + 4 * d


def pack(state: PushSumState) -> NDArray[np.uint8]:
    """The body of a batch of one; without statistics it shares memory with `state.x`."""
    x = np.ascontiguousarray(state.x[0], dtype="<f4").view(np.uint8)
    if state.s.shape[1] == 0:
        return x
    return np.concatenate([np.ascontiguousarray(state.s[0], dtype="<f8").view(np.uint8), x])


def unpack(body: NDArray[np.uint8], w: float, k: int) -> PushSumState:
    """The inverse of `pack`.   body: (8 k + 4 d,) uint8, its length already checked."""
    s = np.frombuffer(body, "<f8", count=k)
    x = np.frombuffer(body, "<f4", offset=8 * k)
    return PushSumState(x=x[None], w=np.array([w]), s=s[None])


class Mass:
    """(x, w, s) of one peer, and the last model z = x / w while there is no weight to divide by."""

    def __init__(self, theta: Vector, k: int) -> None:
        self.model = theta
        self.state = push_sum.init(theta[None], np.zeros(1), np.zeros((1, k)))

    @property
    def w(self) -> float:
        """The weight now."""
        return float(self.state.w[0])

    @property
    def k(self) -> int:
        """How many statistics travel with the model."""
        return int(self.state.s.shape[1])

    def z(self) -> Vector:
        """The de-biased model, (d,) float32."""
        if self.w == 0:
            return self.model
        z: Vector = push_sum.debias(self.state)[0]
        return z

    def pooled(self) -> NDArray[np.float64]:
        """The statistics as any multiple of the federation's sums: their ratios are what is used."""
        s: NDArray[np.float64] = self.state.s[0]
        return s / self.w if self.w > 0 else s

    def enter(self, weight: float, statistics: NDArray[np.float64]) -> None:
        """Take part from the start: x = w theta, and this site's own sums."""
        self.state = push_sum.init(self.model[None], np.array([weight]), statistics[None])

    def vanish(self) -> None:
        """Keep the model, give up the mass: what a peer is whose disk was lost."""
        self.model = self.z()
        self.state = push_sum.init(self.model[None], np.zeros(1), np.zeros((1, self.k)))

    def absorb(self, shares: Sequence[tuple[float, NDArray[np.uint8]]]) -> None:
        """Merge (w, body) shares in the given order."""
        if shares:
            self.state = push_sum.merge(self.state, [unpack(body, w, self.k) for w, body in shares])

    def step(self, start: Vector, end: Vector, nominal: float) -> None:
        """Add a fit's movement from `start` to `end`, weighted and capped (peer.md, Mass)."""
        self.state = push_sum.local_step(self.state, (end - start)[None], np.array([nominal]))

    def split(self, fractions: Sequence[float]) -> list[tuple[float, NDArray[np.uint8]]]:
        """Give away a fraction per neighbour; equal fractions are one body.  Self keeps the remainder."""
        portions = {c: push_sum.portion(self.state, np.array([c])) for c in dict.fromkeys(fractions)}
        self.state = push_sum.keep(self.state, [portions[c] for c in fractions])
        bodies = {c: pack(portion) for c, portion in portions.items()}
        return [(float(portions[c].w[0]), bodies[c]) for c in fractions]

    def surrender(self) -> tuple[float, NDArray[np.uint8]]:
        """Give everything away, for `run leave`."""
        w, body = self.w, pack(self.state)
        self.vanish()
        return w, body

    def model_in(self, body: NDArray[np.uint8]) -> Vector:
        """The parameters of a body that came as a state, (d,) float32; not a copy."""
        model: Vector = unpack(body, 1.0, self.k).x[0]
        return model

    def replace(self, x: Vector) -> None:
        """Put `x`, (d,) float32, in place of the model, as a robust rule decided."""
        self.state = PushSumState(x=x[None], w=self.state.w, s=self.state.s)

    def mix(self, models: Sequence[NDArray[np.uint8] | None], weights: Sequence[float]) -> None:
        """D-PSGD: x <- sum of weights times (own, neighbours'); a missing neighbour counts as self."""
        states = [None if body is None else unpack(body, 1.0, self.k) for body in models]
        x = averaging.mix(self.state.x, [None if s is None else s.x for s in states], np.array([weights]))
        s = sum(
            (
                w * (self.state.s if other is None else other.s)
                for w, other in zip(weights[1:], states, strict=True)
            ),
            weights[0] * self.state.s,
        )
        self.state = PushSumState(x=x, w=self.state.w, s=s)
