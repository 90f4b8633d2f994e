"""Hubs and edges whose learners know the answer, in one process, for tests of what hubs exchange."""

from __future__ import annotations

from typing import Any

import numpy as np
from exchanging import Site, Sites

from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge.beliefs import cross_entropy, log_softmax
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import (
    hidden_of,
)
from p2pfl.knowledge.ranking import Capability, rank
from p2pfl.knowledge.samples import sample_ids
from p2pfl.work import (
    Expected,
    Extract,
    Extracted,
    Fit,
    Fitted,
    Job,
    Judge,
    Judged,
    Learn,
    Learned,
    Mix,
    Mixed,
    Result,
    Samples,
)

__all__ = [
    "D",
    "EDGES",
    "EXPECTED",
    "HUBS",
    "K",
    "N",
    "RUN",
    "SPLIT",
    "Model",
    "capability",
    "edges_of",
    "hub_of",
    "sites",
]

K, D, N = 4, 6, 30
RUN = RunId("11" * 32)
SPLIT = b"\x05" * 32
EXPECTED = Expected(classes=K, width=D, split=SPLIT, model=bytes([1]) * 32, model_values=5)
HUBS = [PeerId("hub-1"), PeerId("hub-2")]
EDGES = [PeerId(f"edge-{i}") for i in range(6)]


class Model:
    """An edge whose hidden values tell the class but whose head does not see it, and a hub that does."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(K, size=N)
        self.hidden = np.hstack([np.eye(K)[self.labels], rng.normal(size=(N, D - K))]).astype(np.float32)
        self.logits = rng.normal(size=(N, K))
        self.ids = sample_ids(bytes([seed]) * 32, RUN, N)
        self.is_lying = False
        self.fit = Fit()
        self.learn: Learn | None = None
        self.mixed: list[Mix] = []
        self.weights = np.full(5, seed, np.float32)

    def __call__(self, job: Job) -> Result:
        match job:
            case Fit():
                self.fit = job
                return Fitted()
            case Extract():
                labels = (self.labels + 1) % K if self.is_lying else self.labels
                is_held_out = np.arange(N) % 3 == 0
                return Extracted(
                    ids=self.ids,
                    hidden=self.hidden,
                    logits=self.logits,
                    labels=labels,
                    is_held_out=is_held_out,
                )
            case Judge():
                losses = {peer: cross_entropy(self.answer(f), f.labels) for peer, f in job.features.items()}
                return Judged(losses=losses)
            case Learn():
                self.learn = job
                everyone = {**job.features, **job.only_answer}
                logits = {peer: self.answer(f) for peer, f in everyone.items()}
                return Learned(logits=logits, model=self.weights)
            case Mix():
                self.mixed.append(job)
                return Mixed()
        raise AssertionError(job)

    def answer(self, features: Any) -> np.ndarray:
        hidden = features.values() if isinstance(features, Samples) else hidden_of(features)
        return log_softmax(5 * hidden[:, :K])


def sites(hubs: list[PeerId] = HUBS, last: int | None = None, **options: Any) -> tuple[Sites, Any]:
    chosen = ExchangeOptions(kind="hub", share_features=True, **options)
    models = {peer: Model(i) for i, peer in enumerate([*hubs, *EDGES])}
    network = Sites(
        {
            peer: Site(
                exchange=HubExchange(options=chosen, expected=EXPECTED, me=peer, run=RUN, last=last),
                learner=model,
            )
            for peer, model in models.items()
        }
    )
    for site in network.sites.values():
        for hub in hubs:
            assert isinstance(site.exchange, HubExchange)
            site.state = site.exchange.announced(site.state, hub, capability())
    return network, models


def capability(model: int = 1, capacity: float = 1.0, split: bytes = SPLIT) -> Capability:
    return Capability(capacity=capacity, model=bytes([model]) * 32, split=split)


def hub_of(edge: PeerId, hubs: list[PeerId] = HUBS) -> PeerId:
    return rank(edge, RUN, dict.fromkeys(hubs, 1.0))[0]


def edges_of(hub: PeerId) -> list[PeerId]:
    return [edge for edge in EDGES if hub_of(edge) == hub]
