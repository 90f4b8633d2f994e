"""The sites of a population at their local training: learners that allow it fit together, the others in turn.

`n` peers, `m` of them in a crew, `d` parameters, `k` statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.events import Train
from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn.descent import Course
from p2pfl.learn.factory import build
from p2pfl.learn.jobs import Ready, Workshop
from p2pfl.learn.learner import Learner, LearnerFactory, Site
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.stacked import Stack

from .memory import refuse_if_too_large

if TYPE_CHECKING:
    from p2pfl.learn.torch_stack import TorchStack

__all__ = ["Crew", "Fits", "Job", "Muster", "muster"]

# Peers that train and mix at a time.  MLP 64-32-10, one row a step: 69, 62, 68 and 94 us a peer-round with
# 16, 64, 256 and 1,024 at a time; beyond some hundred their arrays leave the cache.
_CREW = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A fit of every peer of a crew.   seeds: one a peer.   statistics: (m, k), None without pooling."""

    round: int
    seeds: Sequence[tuple[int, ...]]
    progress: float
    statistics: Floats | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """What a crew's fits gave.

    ended: (m, d) float32, where it began for a peer whose fit failed.   losses: (m,), NaN where none is
    known.   faults: why, by position.
    """

    ended: Vectors
    losses: Floats
    faults: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """`peers`, (m,), who train either as one `stack`, or each in its own of `shops`."""

    peers: Indices
    stack: Stack | TorchStack | None = None
    shops: tuple[Workshop, ...] = ()

    def fit(self, start: Vectors, job: Job) -> Fits:
        """Train all from `start`, (m, d)."""
        if self.stack is not None:
            rngs = [np.random.default_rng(seed) for seed in job.seeds]
            ended, losses = self.stack.fit(start, rngs, job.progress, job.statistics)
            lost = np.flatnonzero(np.isnan(losses)).tolist()
            return Fits(ended=ended, losses=losses, faults=dict.fromkeys(lost, "training diverged"))
        ended, losses = start.copy(), np.full(len(start), np.nan)
        faults: dict[int, str] = {}
        for i, (shop, seed) in enumerate(zip(self.shops, job.seeds, strict=True)):
            done = shop.train(
                Train(
                    round=job.round,
                    parameters=start[i],
                    seed=seed,
                    progress=job.progress,
                    deadline=float("inf"),
                    statistics=None if job.statistics is None else job.statistics[i],
                )
            )
            if done.parameters is None:
                faults[i] = done.fault
            else:
                ended[i] = done.parameters
                losses[i] = done.metrics.get("loss", done.metrics.get("train_loss", np.nan))
        return Fits(ended=ended, losses=losses, faults=faults)

    def state(self) -> bytes:
        """What their learners keep between fits; empty when that is nothing."""
        if self.stack is not None:
            return self.stack.state()
        states: list[bytes] = [getattr(shop.learner, "state", bytes)() for shop in self.shops]
        return msgspec.msgpack.encode(states) if any(states) else b""

    def restore(self, state: bytes) -> None:
        """Take back what `state` gave, of as many peers.  Raises LearnerError."""
        if self.stack is not None:
            self.stack.restore(state)
            return
        states = msgspec.msgpack.decode(state, type=list[bytes]) if state else [b""] * len(self.shops)
        for shop, own in zip(self.shops, states, strict=True):
            learner: Any = shop.learner
            if own:
                learner.restore(own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Muster:
    """All crews, and what every peer brings: `theta` (d,), the first model of all; `samples` (n,);
    `statistics` (n, k).   notes: why peers fit one by one who were to fit together.
    """

    crews: tuple[Crew, ...]
    theta: NDArray[np.float32]
    samples: Floats
    statistics: Floats
    notes: tuple[str, ...] = ()


def muster(factory: LearnerFactory, sites: Sequence[Site], *, is_vmapped: bool = False) -> Muster:
    """Build every site's learner, and put those that can be fitted together in stacks.

    is_vmapped: torch learners, too, by vmap, which is not always bit for bit what each does alone.
    Raises LearnerError when one cannot be built or starts from another model, ConfigError when the population
    would not fit in memory (found out on the first).
    """
    first: Ready | None = None
    samples, statistics = [], []
    together: dict[Course, list[tuple[int, NumpyLearner]]] = defaultdict(list)
    apart: list[tuple[int, Workshop]] = []
    for i, site in enumerate(sites):
        shop = Workshop(partial(build, factory), site)
        ready = shop.ready()
        if first is None:
            first = ready
            refuse_if_too_large(len(sites), len(ready.parameters))
        elif ready.schema_hash != first.schema_hash or not np.array_equal(ready.parameters, first.parameters):
            raise LearnerError(
                f"site {i} starts from another model than site 0, and would be refused by it;"
                " make the factory depend on the run's seed alone"
            )
        samples.append(float(ready.samples))
        statistics.append(ready.statistics)
        match shop.learner:
            case NumpyLearner() as learner if (course := learner.course()) is not None:
                together[course].append((i, learner))
            case _:
                apart.append((i, shop))
    assert first is not None
    crews = [
        Crew(peers=_peers(some), stack=Stack([learner for _, learner in some]))
        for members in together.values()
        for some in (members[at : at + _CREW] for at in range(0, len(members), _CREW))
    ]
    notes: tuple[str, ...] = ()
    if is_vmapped and apart:
        # The only part of a population that loads torch.
        from .vmapped import stacks

        stacked, apart, notes = stacks(apart)
        crews += [Crew(peers=peers, stack=stack) for peers, stack in stacked]
    crews += [
        Crew(peers=_peers(some), shops=tuple(shop for _, shop in some))
        for some in (apart[at : at + _CREW] for at in range(0, len(apart), _CREW))
    ]
    return Muster(
        crews=tuple(crews),
        theta=first.parameters,
        samples=np.array(samples),
        statistics=np.stack(statistics),
        notes=notes,
    )


def _peers(members: Sequence[tuple[int, Learner | Workshop]]) -> Indices:
    return np.array([i for i, _ in members], np.int64)
