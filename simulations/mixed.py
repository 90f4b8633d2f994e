"""Virtual peers behind one real node: its learner is a population (`p2pfl simulate --join`).

To the run it is a member like any other: one key, one certificate, one ledger.  Only its fit is particular.
The network's model z goes to `n` virtual peers, each with its own part of the site's rows.  In each of `k`
inner rounds they train, and between them they mix by push-sum on an exponential graph, with the kernels of
the population engine; nothing travels, so what is given is there before the next fit, not after it as between
nodes.  The fit gives sum(x)/sum(w) over them: their weighted mean, however far they mixed.

The agreement's local steps are shared out over the inner rounds, so that nobody trains longer than agreed.
Virtual peers begin each fit with z and keep nothing but what learners keep (momentum that is not reset), so
a front that was killed goes on as any node does.

Weight.  With `run.weights = "samples"` the front counts with the rows of all its virtual peers, and they
among themselves with theirs.  With "uniform" it counts as the one member that the founders let in, whatever
`n` is, and its virtual peers count alike.  How many stand behind a key nobody else can check, so it must not
buy weight.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import trio
from msgspec import Meta, Struct

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.gossip import push_sum, topology
from p2pfl.gossip.mixing import Floats, uniform_fraction
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.learn.factory import (
    build,
    data_set_of,
    resolve,
    samples_of,
    schema_hash_of,
    statistics_of,
    tensors_of,
)
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import Site, Update
from p2pfl.learn.options import LearnerOptions, PartitionOptions
from p2pfl.node import learner_child
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.run import RunOptions, RunSpec, dp_sgd_of

from .crews import Crew, Job, muster
from .inflow import Inflow, inflows
from .intake import absorb, put, take
from .workload import cut

__all__ = ["Front", "FrontOptions", "inner_rounds_of", "learning", "main"]

# Virtual peers mix this often in a round, unless told otherwise: once between two halves of their steps.
_INNER_ROUNDS = 2
_GRAPH = TopologyOptions(kind="exponential")


class FrontOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands behind the node.   weights: the agreement's."""

    peers: Annotated[int, Meta(ge=1, le=1_000_000)]
    inner_rounds: Annotated[int, Meta(ge=1)] = 1
    partition: PartitionOptions = PartitionOptions()
    weights: Literal["uniform", "samples"] = "uniform"


class Front:
    """A learner whose fit is that of `n` virtual peers.  It holds all of the site's rows for its own part."""

    def __init__(self, options: FrontOptions, site: Site) -> None:
        """Raises ConfigError when the agreement's learner cannot be shared out, LearnerError."""
        self.should_stop = site.should_stop
        self._site, self._rounds, n = site, options.inner_rounds, options.peers
        learner = _checked(site, options)
        inner = msgspec.structs.replace(
            learner,
            local_steps=learner.local_steps // options.inner_rounds,
            # Statistics of a few rows mean nothing: virtual peers have those of their site.
            standardise="none" if learner.standardise == "none" else "federation",
            data=msgspec.structs.replace(learner.data, source=site.data or learner.data.source),
        )
        spec = RunSpec(run=RunOptions(seed=site.seed), learner=inner)
        workload = cut(spec, n, options.partition)
        self._whole: Any = build(resolve(learner), replace(site, dataset=workload.pooled))
        sites = [workload.site(i, spec) for i in range(n)]
        mustered = muster(workload.factory, [replace(one, should_stop=site.should_stop) for one in sites])
        self._crews = mustered.crews
        self._weight = mustered.samples if options.weights == "samples" else np.ones(n)
        self._pooled: Floats | None = None
        if learner.standardise == "site":
            self._pooled = mustered.statistics.sum(axis=0)
        self._n, d = n, len(mustered.theta)
        self._into = [_into(crew, n, d) for crew in self._crews]
        plan = topology.plan(_GRAPH, 0, n, site.seed)
        self._degree = np.array([len(plan.out_neighbours(i)) for i in range(n)], np.int64)
        self._fraction = np.array([uniform_fraction(count) for count in self._degree.tolist()])

    # --- the learner that the node sees ----------------------------------------------------------------

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """The virtual peers' weighted mean after they have trained from `parameters`, (d,), and mixed.

        Once the site says stop, those who have not trained yet count with what they have.
        Raises LearnerError when every virtual fit failed.
        """
        seed, statistics = int(rng.integers(2**63)), np.zeros((self._n, 0))
        held = push_sum.init(np.tile(parameters, (self._n, 1)), self._weight, statistics)
        sent = PushSumState(x=np.zeros_like(held.x), w=np.zeros(self._n), s=statistics)
        losses: list[Floats] = []
        faults: list[str] = []
        for number in range(self._rounds):
            for crew, into in zip(self._crews, self._into, strict=True):
                own = take(held, crew.peers)
                if number:
                    absorb(own, sent, into)
                if not self.should_stop():
                    start = push_sum.debias(own)
                    fits = crew.fit(start, self._job(crew, seed, number))
                    own = push_sum.local_step(own, fits.ended - start, self._weight[crew.peers])
                    losses.append(fits.losses)
                    faults += fits.faults.values()
                put(held, crew.peers, own)
            if number < self._rounds - 1:
                self._give(held, sent)
        fits_done = sum(map(len, losses))
        if fits_done and len(faults) == fits_done:
            raise LearnerError(f"every fit of {self._n} virtual peers failed, the last so: {faults[-1]}")
        total = held.x.astype(np.float64).sum(axis=0) / held.w.sum()
        return Update(
            parameters=total.astype(np.float32),
            samples=self.samples(),
            metrics=_said(losses, len(faults)),
        )

    def parameters(self) -> Vector:
        """The first model, that of the agreement."""
        first: Vector = self._whole.parameters()
        return first

    def evaluate(self, parameters: Vector) -> Metrics:
        """Measured on the site's test rows."""
        measured: Metrics = self._whole.evaluate(parameters)
        return measured

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The loss on training rows of the site."""
        return float(self._whole.validate(parameters, rng))

    def samples(self) -> int:
        """The training rows of all virtual peers."""
        return samples_of(self._whole)

    def statistics(self) -> Floats:
        """The sums of all virtual peers, to pool across sites."""
        return statistics_of(self._whole)

    def standardise(self, sums: Floats) -> None:
        """Give all virtual peers what was pooled across sites."""
        self._whole.standardise(sums)
        self._pooled = sums

    def schema(self) -> Schema | None:
        """The names and shapes of the tensors in the vector."""
        return tensors_of(self._whole)

    def schema_hash(self) -> bytes:
        """That of a site without virtual peers."""
        return schema_hash_of(self._whole)

    def data_set(self) -> str:
        """What names the site's rows in its privacy account."""
        return data_set_of(self._whole, self._site)

    def state(self) -> bytes:
        """What the virtual peers' learners keep between fits."""
        states = [crew.state() for crew in self._crews]
        return msgspec.msgpack.encode(states) if any(states) else b""

    def restore(self, state: bytes) -> None:
        """Take back what `state` gave.  Raises LearnerError when there were other virtual peers."""
        states = msgspec.msgpack.decode(state, type=list[bytes])
        if len(states) != len(self._crews):
            raise LearnerError(
                f"the saved state is not that of {self._n} virtual peers; start it with the same"
            )
        for crew, own in zip(self._crews, states, strict=True):
            crew.restore(own)

    # --- within a fit ----------------------------------------------------------------------------------

    def _job(self, crew: Crew, seed: int, number: int) -> Job:
        pooled = self._pooled
        return Job(
            round=number,
            seeds=[(seed, number, i) for i in crew.peers.tolist()],
            progress=self._site.progress(),
            statistics=None if pooled is None else np.tile(pooled, (len(crew.peers), 1)),
        )

    def _give(self, held: PushSumState, sent: PushSumState) -> None:
        for crew in self._crews:
            some = crew.peers
            part, kept = push_sum.split(take(held, some), self._fraction[some], self._degree[some])
            put(sent, some, part)
            put(held, some, kept)


def inner_rounds_of(learner: LearnerOptions, asked: int | None) -> int:
    """How often virtual peers train and mix in one round: as asked, else twice where the steps are even."""
    return asked or (_INNER_ROUNDS if learner.local_steps % _INNER_ROUNDS == 0 else 1)


def learning(options: FrontOptions, spec: RunSpec, isolation: str) -> LearnerProcess | InlineLearner:
    """The node's learner: a population in a process of its own, or in a thread, as node.isolation says.

    Raises ConfigError when the agreement's learner cannot be shared out.
    """
    _checked(Site(options=spec.learner, dp_sgd=dp_sgd_of(spec)), options)
    if spec.knowledge.exchange.kind != "none":
        raise ConfigError(
            f"knowledge.exchange.kind {spec.knowledge.exchange.kind!r} asks one learner about its rows, and"
            ' virtual peers are many that share one model; it takes "none", or a node without --join'
        )
    if isolation == "thread":
        return InlineLearner(
            partial(Front, options), runner=partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        )
    order = msgspec.json.encode(options).decode()
    return LearnerProcess(evaluate_s=spec.run.deadline_s, program=("p2pfl.simulations.mixed", order))


def main(arguments: Sequence[str]) -> int:
    """The learner's process: what every one is told, then FrontOptions as JSON."""
    options = msgspec.json.decode(arguments[-1], type=FrontOptions)
    return learner_child.main(list(arguments[:-1]), partial(Front, options))


def _checked(site: Site, options: FrontOptions) -> LearnerOptions:
    learner, k = site.options, options.inner_rounds
    assert isinstance(learner, LearnerOptions), "the driver gives the agreement's [learner]"
    if learner.module:
        raise ConfigError(
            "the rows of virtual peers are cut from this site's data, which learner.module reads by itself;"
            " choose a built-in model, or start a node a site"
        )
    if learner.share != ("*",):
        raise ConfigError(
            "learner.share keeps layers at each site, and virtual peers of one node would each have their own"
            ' that nobody could evaluate; share = ["*"], or start a node a site'
        )
    if site.dp_sgd is not None:
        raise ConfigError(
            'trust.privacy "dp-sgd" counts the noise of one learner, and a mean of virtual peers releases'
            " something else; take the site's rows as one (`p2pfl node start`)"
        )
    if learner.local_steps % k:
        raise ConfigError(
            f"{k} inner rounds do not divide learner.local_steps {learner.local_steps}; virtual peers share"
            " them out evenly"
        )
    return learner


def _into(crew: Crew, n: int, d: int) -> list[Inflow]:
    return inflows(topology.plan(_GRAPH, 0, n, 0), crew.peers, "none", d)


def _said(losses: Sequence[Floats], faults: int) -> Metrics:
    known = np.concatenate(losses) if losses else np.zeros(0)
    known = known[np.isfinite(known)]
    loss = {"train_loss": float(known.mean())} if known.size else {}
    return {**loss, "fits": float(sum(map(len, losses))), "failed_fits": float(faults)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
