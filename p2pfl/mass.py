"""A peer's own part of the network's mass: the kernels of gossip/ with a batch of one.

Sizes: d parameters, k pooled statistics.  On the wire a body is the k float64 statistics, then d float32
numbers, little-endian: push-sum's numerators, or a model that travels as a state.  Push-pull has the d of
its model and then the d of its tracker.  Scalars ride in the header: the weight w, and push-pull's term.

A term is one life of the tracker.  What a peer took with it when its disk was lost is gone from the sum of
trackers, so whoever closes the books on an incarnation begins the next term, with its tracker at its own
last gradient, and so does everybody who hears of that term; a part of an earlier term counts nothing.
Within the latest term the trackers, with what is in flight, hold the sum of gradients of the peers in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Vector
from p2pfl.gossip import averaging, capped, push_pull, push_sum
from p2pfl.gossip.push_pull import PushPullState
from p2pfl.gossip.push_sum import PushSumState

__all__ = ["Mass", "body_bytes", "pack", "unpack"]


def body_bytes(d: int, k: int, *, is_tracked: bool = False) -> int:
    """Bytes of a body with d parameters and k statistics.   is_tracked: by push-pull."""
    return 8 * k + 4 * d * (2 if is_tracked else 1)


def pack(state: PushSumState, model: Vector | None = None) -> NDArray[np.uint8]:
    """The body of a batch of one, after push-pull's model; with x alone it shares memory with `state.x`."""
    x = np.ascontiguousarray(state.x[0], dtype="<f4").view(np.uint8)
    before = [] if model is None else [np.ascontiguousarray(model, dtype="<f4").view(np.uint8)]
    if state.s.shape[1]:
        before.insert(0, np.ascontiguousarray(state.s[0], dtype="<f8").view(np.uint8))
    return np.concatenate([*before, x]) if before else x


def unpack(body: NDArray[np.uint8], w: float, k: int) -> PushSumState:
    """The inverse of `pack`, with a model's and a tracker's numbers in one row of x.

    body: uint8, its length already checked.
    """
    s = np.frombuffer(body, "<f8", count=k)
    x = np.frombuffer(body, "<f4", offset=8 * k)
    return PushSumState(x=x[None], w=np.array([w]), s=s[None])


class Mass:
    """(x, w, s) of one peer, and the last model z = x / w while there is no weight to divide by.

    With push-pull x is the tracker, `model` always the model, `g` the gradient in the tracker (None
    otherwise), and `term` the tracker's.
    """

    def __init__(self, theta: Vector, k: int, *, is_tracked: bool = False) -> None:
        self.model = theta
        self.g = np.zeros_like(theta) if is_tracked else None
        self.term = 0
        self.state = push_sum.init(theta[None], np.zeros(1), np.zeros((1, k)))

    @property
    def w(self) -> float:
        """The weight now."""
        return float(self.state.w[0])

    @property
    def k(self) -> int:
        """How many statistics travel with the model."""
        return int(self.state.s.shape[1])

    @property
    def is_tracked(self) -> bool:
        """Whether this is push-pull's."""
        return self.g is not None

    @property
    def is_modelled(self) -> bool:
        """Whether `model` is the model, rather than x / w."""
        return self.is_tracked or self.w == 0

    @property
    def body_bytes(self) -> int:
        """Bytes of the body of a share or state."""
        return body_bytes(len(self.model), self.k, is_tracked=self.is_tracked)

    def z(self) -> Vector:
        """The de-biased model, (d,) float32."""
        if self.is_modelled:
            return self.model
        z: Vector = push_sum.debias(self.state)[0]
        return z

    def pooled(self) -> NDArray[np.float64]:
        """The statistics as any multiple of the federation's sums: their ratios are what is used."""
        s: NDArray[np.float64] = self.state.s[0]
        return s / self.w if self.w > 0 else s

    def enter(self, weight: float, statistics: NDArray[np.float64]) -> None:
        """Take part from the start: x = w theta, or a tracker of 0; and this site's own sums."""
        x = np.zeros_like(self.model) if self.is_tracked else self.model
        self.state = push_sum.init(x[None], np.array([weight]), statistics[None])

    def vanish(self) -> None:
        """Keep the model, give up the mass: what a peer is whose disk was lost."""
        self.model = self.z()
        self.state = push_sum.init(self.model[None], np.zeros(1), np.zeros((1, self.k)))
        if self.is_tracked:
            self.g = np.zeros_like(self.model)

    def absorb(
        self, shares: Sequence[tuple[tuple[float, ...], NDArray[np.uint8]]], fraction: float = 1.0
    ) -> None:
        """Merge `fraction` of shares, (weights of the header, body), in the given order.

        Push-pull: the latest term among them is this peer's from now on, and trackers of others count 0.
        """
        if not shares:
            return
        parts = [unpack(body, weights[0], self.k) for weights, body in shares]
        if fraction != 1.0:
            parts = [push_sum.portion(part, np.array([fraction])) for part in parts]
        if self.is_tracked:
            terms = [int(weights[1]) for weights, _ in shares]
            if max(terms) > self.term:
                self.restart(max(terms))
            d, nothing = len(self.model), np.zeros_like(self.state.x)
            parts = [
                replace(part, x=part.x[:, d:] if term == self.term else nothing)
                for part, term in zip(parts, terms, strict=True)
            ]
        self.state = push_sum.merge(self.state, parts)

    def absorb_capped(
        self,
        shares: Sequence[tuple[tuple[float, ...], NDArray[np.uint8]]],
        taken: Sequence[float],
        tau: float | None,
    ) -> list[float]:
        """Merge the parts `taken` of shares, their models clipped.  Returns how far each was."""
        parts = [unpack(body, weights[0], self.k) for weights, body in shares]
        far = capped.distances(self.state, parts)
        self.state = capped.absorb(self.state, parts, np.array([taken]), capped.radii(self.state, tau), far)
        found: list[float] = far[0].tolist()
        return found

    def pull(self, bodies: Sequence[NDArray[np.uint8]]) -> None:
        """Push-pull: average the model with those in `bodies`; without mass yet, take theirs."""
        models = [unpack(body, 1.0, self.k).x[:, : len(self.model)] for body in bodies]
        self.model = push_pull.pull(self.model[None], models, np.array([self.w == 0]))[0]

    def restart(self, term: int | None = None) -> None:
        """Push-pull: begin `term`, the next by default, with the tracker at the last gradient."""
        if self.g is not None:
            self.term = self.term + 1 if term is None else term
            self.state = push_pull.restart(self._held(self.g)).pushed

    def step(self, start: Vector, end: Vector, nominal: float) -> None:
        """Add a fit's movement from `start` to `end`, weighted and capped (peer.md, Mass); or track it."""
        if self.g is None:
            self.state = push_sum.local_step(self.state, (end - start)[None], np.array([nominal]))
            return
        moved = push_pull.step(self._held(self.g), (start - end)[None])
        self.model, self.g, self.state = moved.x[0], moved.g[0], moved.pushed

    def split(self, fractions: Sequence[float]) -> list[tuple[tuple[float, ...], NDArray[np.uint8]]]:
        """Give away a fraction per neighbour: the weights and body of each share, in order.

        Equal fractions are one body.  Self keeps the remainder.
        """
        portions = {c: push_sum.portion(self.state, np.array([c])) for c in dict.fromkeys(fractions)}
        self.state = push_sum.keep(self.state, [portions[c] for c in fractions])
        shares = {c: self._share(portion) for c, portion in portions.items()}
        return [shares[c] for c in fractions]

    def surrender(self) -> tuple[tuple[float, ...], NDArray[np.uint8]]:
        """Give everything away, for `run leave`: the weights and body of one share."""
        share = self._share(self.state)
        self.vanish()
        return share

    def model_in(self, body: NDArray[np.uint8]) -> Vector:
        """The parameters of a body that came as a state, (d,) float32; not a copy."""
        model: Vector = unpack(body, 1.0, self.k).x[0]
        return model

    def model_of(self, shares: Sequence[tuple[tuple[float, ...], NDArray[np.uint8]]]) -> Vector:
        """The model that one peer's shares or state bring together, (d,) float32.

        shares: (weights of the header, body), in order; of push-pull's the last one's model is pulled.
        """
        if self.is_tracked:
            return self.model_in(shares[-1][1])[: len(self.model)]
        if len(shares) == 1 and shares[0][0][0] == 1.0:
            return self.model_in(shares[0][1])
        parts = [unpack(body, weights[0], self.k) for weights, body in shares]
        model: Vector = push_sum.debias(push_sum.merge(parts[0], parts[1:]))[0]
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

    def _share(self, part: PushSumState) -> tuple[tuple[float, ...], NDArray[np.uint8]]:
        w = float(part.w[0])
        return ((w, float(self.term)), pack(part, self.model)) if self.is_tracked else ((w,), pack(part))

    def _held(self, g: Vector) -> PushPullState:
        return PushPullState(x=self.model[None], g=g[None], pushed=self.state)
