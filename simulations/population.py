"""Many peers as one matrix: synchronous rounds on a perfect network, by the gossip kernels the peers use.

A round is what `Peer` makes of it when nobody is late (p2pfl/rounds.py): fit from the model held, absorb what
the in-neighbours gave in the round before, in PeerId order, add the local step, give parts away.  What every
round commits (x, w, statistics) is bit for bit that of the world engine on a perfect network with equal
speeds: the kernels, the order of their terms and the fits' random streams are the same, and rows do not
depend on each other.  Shares of the last round are absorbed together here and one by one, as they arrive, by
a draining peer, so the last models of push-sum agree to float32 rounding, 1e-6; all others bit for bit.
Robust rules and attackers (lies.py) are those of the world, too; what honest peers hear of attackers agrees
to float32 rounding.

Controls are what a scenario compares with and no agreement offers: `alone` never mixes; `centralised` has
every site fit one model and takes the mean of their movements; `without-weights` splits as push-sum does and
never divides by w; `row-stochastic` takes the plain mean of own and in-neighbours' models.

Two arrays hold everything: `held`, and `sent`, what each peer gave every out-neighbour in the last round, or,
on a graph of unequal parts, what it held before it gave; with push-pull they are its trackers, and `tracked`
has the models.
`n` peers, `d` parameters, `k` statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from p2pfl.aggregation import is_robust, mixer_of
from p2pfl.errors import LearnerError, LocalError
from p2pfl.events import Fact
from p2pfl.gossip import push_sum, topology
from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.gossip.push_pull import PUSH_PULL
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan
from p2pfl.learn.learner import LearnerFactory, Site
from p2pfl.learn.metrics import consensus_distance
from p2pfl.mass import body_bytes
from p2pfl.rounds import FIT
from p2pfl.run import RunSpec
from p2pfl.schedule import schedule
from p2pfl.state import seed_of
from p2pfl.trust.screening import MIN_WEIGHT

from .attacks import AttackOptions
from .crews import Crew, Fits, Job, muster
from .inflow import Inflow, Weights, inflows
from .intake import absorb, absorb_lies, put, share_of, split_unequally, take, weigh
from .lies import Liars, Lies
from .machine import Listener, identities
from .placement import honest_count
from .tracked import Tracked

__all__ = ["Control", "Population"]

# "shuffled-teacher" is for hubs, which a population has not (machine.py).
Control = Literal["none", "alone", "centralised", "without-weights", "row-stochastic", "shuffled-teacher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edges:
    """A round's graph: what each crew hears; the fraction a peer gives an out-neighbour, and their number."""

    plan: Plan
    into: tuple[list[Inflow], ...]
    fraction: Floats
    count: Indices


class Population:
    """`n` peers in one run, the first `honest` of them honest.  `run`; or `step` by step, then `finish`."""

    def __init__(
        self,
        spec: RunSpec,
        factory: LearnerFactory,
        sites: Sequence[Site],
        *,
        control: Control = "none",
        attack: AttackOptions | None = None,
        consensus_every: int = 0,
        is_vmapped: bool = False,
        listener: Listener | None = None,
    ) -> None:
        """attack: of the last peers, who have the last of `sites`.   consensus_every: rounds between
        measurements of the consensus distance; 0 is never.   is_vmapped: torch learners fit together.

        Raises ConfigError when it would not fit in memory, LearnerError when a learner cannot be built.
        """
        n = len(sites)
        self.spec, self.n, self.control = spec, n, control
        self.schedule = schedule(spec)
        self.honest = n if attack is None else honest_count(attack, n)
        self.names = [identity.peer_id for identity in identities(n, spec.run.seed)]
        mustered = muster(factory, sites, is_vmapped=is_vmapped)
        for note in mustered.notes:
            if listener is not None:
                listener(0.0, 0, Fact(event=note, level="warning", fields={}))
        self.crews = mustered.crews
        weight = mustered.samples if spec.run.weights == "samples" else np.ones(n)
        # What each peer counts with; a control's models have no weights of their own.
        self.nominal = weight if control == "none" else np.ones(n)
        theta = np.tile(mustered.theta, (n, 1))
        self.tracked = None
        if control == "none" and mixer_of(spec) is PUSH_PULL:
            self.tracked = Tracked.of(mustered.theta, n)
            theta = np.zeros_like(theta)
        self.held = push_sum.init(theta, self.nominal, mustered.statistics)
        if control == "centralised":
            self.held.s[:] = mustered.statistics.mean(axis=0)
        x, s = np.zeros_like(self.held.x), np.zeros_like(self.held.s)
        self.sent = PushSumState(x=x, w=np.zeros(n), s=s)
        self.round = 0
        self.pooled: Floats | None = None
        self.faults = np.zeros(n, np.int64)
        self.sent_bodies = np.zeros(n, np.int64)
        self.per_round: list[dict[str, Any]] = []
        # Of the last round's fits, NaN where none is known.
        self.losses = np.full(n, np.nan)
        self._losses: list[Floats] = []
        self._lies: Lies = {}
        self._bounds_broken = 0
        self._shares = control == "without-weights" or (
            control == "none" and mixer_of(spec).delivery == "share"
        )
        self._weights: Weights = (
            "none" if self._shares else "uniform" if control == "row-stochastic" else "rows"
        )
        self._is_robust = control == "none" and is_robust(spec)
        self._central = weight / weight.sum()
        self._liars: Liars | None = None
        # The models that the last fits began with, which attackers may go back to.
        self._before = self.held.x
        if attack is not None and self.honest < n and not self._is_apart:
            is_plain = self._weights == "rows" and not self._is_robust
            self._liars = Liars(attack, self.honest, self.names, spec.run.seed, is_plain=is_plain)
            self._before = self.held.x.copy()
        self._consensus_every, self._listener = consensus_every, listener
        self._edges: dict[int, _Edges] = {}

    # --- driving -------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether every round was taken."""
        return self.round >= self.schedule.total

    def run(self) -> None:
        """All rounds, and the end.  Raises LearnerError when every fit of a round fails."""
        while not self.is_over:
            self.step()
        self.finish()

    def step(self) -> None:
        """One round of every peer.  Raises LearnerError when every honest fit of it fails."""
        number, stage = self.round, self.schedule.stage(self.round)
        if self.schedule.opening and number == self.schedule.opening:
            self.pooled = self.held.s / self.held.w[:, None]
        losses, moved = np.full(self.n, np.nan), np.zeros(self.held.x.shape[1])
        failed: dict[int, str] = {}
        before = self._edges_of(number - 1) if number else None
        for index, crew in enumerate(self.crews):
            own = take(self.held, crew.peers)
            fits, start = None, own.x
            if stage == "training":
                start = push_sum.debias(own) if self.tracked is None else self.tracked.x[crew.peers]
                fits = self._fit(crew, start)
                losses[crew.peers] = fits.losses
                if self._liars is not None:
                    self._before[crew.peers] = start
                failed |= {int(crew.peers[at]): why for at, why in fits.faults.items()}
            if before is not None:
                own = self._absorb(own, index, before)
                if self.tracked is not None:
                    self.tracked.pull(crew.peers, before.into[index])
            if fits is not None and self.control == "centralised":
                moved += (self._central[crew.peers, None] * (fits.ended - start)).sum(axis=0)
            elif fits is not None and self.tracked is not None:
                self.tracked.step(crew.peers, own, fits.ended - start, fits.faults)
            elif fits is not None:
                own = push_sum.local_step(own, fits.ended - start, self.nominal[crew.peers])
            put(self.held, crew.peers, own)
        self.faults[list(failed)] += 1
        reasons = [why for i, why in failed.items() if i < self.honest]
        if len(reasons) == self.honest:
            raise LearnerError(f"every fit of round {number} failed, the last so: {reasons[-1]}")
        if self.control == "centralised":
            self.held.x[:] += moved.astype(np.float32)
        if not self._is_apart:
            self._give(self._edges_of(number))
        self.round += 1
        self._note(number, stage, losses)

    def finish(self) -> None:
        """Absorb the shares of the last round; states in flight count no more."""
        if self._shares and self.round:
            edges = self._edges_of(self.round - 1)
            for index, crew in enumerate(self.crews):
                put(self.held, crew.peers, self._absorb(take(self.held, crew.peers), index, edges))

    # --- what came of it -----------------------------------------------------------------------------

    def models(self) -> Vectors:
        """The de-biased models, (n, d) float32."""
        return push_sum.debias(self.held) if self.tracked is None else self.tracked.x

    def online_loss(self) -> float | None:
        """The mean training loss over honest peers and rounds; None where no learner says."""
        losses = np.array(self._losses)
        return float(np.nanmean(losses)) if np.isfinite(losses).any() else None

    def body_bytes(self) -> int:
        """Bytes of one body that travels."""
        d, k = self.held.x.shape[1], self.held.s.shape[1]
        return body_bytes(d, k, is_tracked=self.tracked is not None)

    def mass(self) -> Mapping[str, float] | None:
        """The sum of weights, after `finish`; None where models are states."""
        if self.control != "none" or not self._shares:
            return None
        total, expected = push_sum.mass([self.held]), float(self.nominal.sum())
        return {"sum": total, "expected": expected, "error": abs(total - expected) / expected}

    # --- a round's parts -----------------------------------------------------------------------------

    @property
    def _is_apart(self) -> bool:
        return self.control in ("alone", "centralised")

    def _fit(self, crew: Crew, start: Vectors) -> Fits:
        number, seed = self.round, self.spec.run.seed
        return crew.fit(
            start,
            Job(
                round=number,
                seeds=[seed_of(seed, FIT, self.names[i], number) for i in crew.peers.tolist()],
                progress=self.schedule.progress(number),
                statistics=None if self.pooled is None else self.pooled[crew.peers],
            ),
        )

    def _absorb(self, own: PushSumState, index: int, edges: _Edges) -> PushSumState:
        """What crew number `index`, who hold `own`, have after taking in what was sent; `own` is written."""
        peers = self.crews[index].peers
        if self._is_robust:
            options, progress = self.spec.trust.aggregator, self.schedule.progress(self.round)
            self._bounds_broken += weigh(own, self.sent, peers, edges.plan, options, self._lies, progress)
        elif self._lies:
            absorb_lies(own, self.sent, peers, edges.plan, self._weights, self._lies)
        else:
            absorb(own, self.sent, edges.into[index])
        if self.control != "without-weights":
            return own
        # A model is all that it holds: x is not divided by w, and what is kept of it is not counted as less.
        return PushSumState(x=own.x, w=np.ones_like(own.w), s=own.s)

    def _give(self, edges: _Edges) -> None:
        for crew in self.crews:
            peers = crew.peers
            own = take(self.held, peers)
            if self._shares and edges.plan.graph.has_unequal_parts:
                if self.tracked is not None:
                    self.tracked.sent[peers] = self.tracked.x[peers]
                put(self.sent, peers, own)
                put(self.held, peers, split_unequally(own, peers, edges.plan))
                self.sent_bodies[peers] += edges.count[peers]
            elif self._shares:
                fraction, count = edges.fraction[peers], edges.count[peers]
                # What a neighbour would have to refuse stays here.
                is_too_small = fraction * own.w < MIN_WEIGHT
                if self.tracked is not None:
                    if is_too_small.any():
                        raise LocalError(f"a weight fell below {MIN_WEIGHT:g}; use --engine world")
                    self.tracked.sent[peers] = self.tracked.x[peers]
                fraction, count = np.where(is_too_small, 0.0, fraction), np.where(is_too_small, 0, count)
                part, kept = push_sum.split(own, fraction, count)
                put(self.sent, peers, part)
                put(self.held, peers, kept)
                self.sent_bodies[peers] += count
            else:
                put(self.sent, peers, own)
                self.sent_bodies[peers] += edges.count[peers]
        if self._liars is not None:
            self._lie(self._liars, edges.plan)

    def _lie(self, liars: Liars, plan: Plan) -> None:
        """Let the attackers see what the honest hold now, and say what each receiver is to hear."""
        those = np.arange(self.honest, self.n)
        own = push_sum.debias(take(self.sent, those)) if self._shares else self.held.x[those]
        self._lies = liars.tell(
            plan,
            self.models(),
            own,
            self._before[those],
            number=self.round,
            opening=self.schedule.opening,
        )
        if self._shares:
            # A share that is refused goes back to who sent it; one that is never sent was never given.
            for (i, j), model in self._lies.items():
                if model is None:
                    one, back = np.array([j]), share_of(self.sent, plan, j, i)
                    put(self.held, one, push_sum.merge(take(self.held, one), [back]))

    def _edges_of(self, number: int) -> _Edges:
        options = self.spec.gossip.topology
        key = number if options.is_redrawn else number % topology.period(options, self.n)
        if key not in self._edges:
            if options.is_redrawn:
                self._edges = {k: e for k, e in self._edges.items() if k == number - 1}
            plan = topology.plan(options, number, self.n, self.spec.run.seed)
            d = self.held.x.shape[1]
            count = np.array([len(plan.out_neighbours(i)) for i in range(self.n)], np.int64)
            is_summed = not (self._is_apart or self._is_robust)
            self._edges[key] = _Edges(
                plan=plan,
                into=tuple(
                    inflows(plan, crew.peers, self._weights, d) if is_summed else [] for crew in self.crews
                ),
                fraction=np.array([max(plan.fractions(i)[1], default=1.0) for i in range(self.n)]),
                count=count,
            )
        return self._edges[key]

    def _note(self, number: int, stage: str, losses: Floats) -> None:
        self.losses = losses
        if stage == "training":
            self._losses.append(losses[: self.honest])
        known = losses[: self.honest][np.isfinite(losses[: self.honest])]
        said: dict[str, Any] = {"round": number, "stage": stage}
        said["loss"] = float(known.mean()) if known.size else None
        if self._is_robust:
            said["bounds_broken"], self._bounds_broken = self._bounds_broken, 0
        if self._consensus_every and self.round % self._consensus_every == 0:
            said["consensus_distance"] = consensus_distance(self.models()[: self.honest])
        self.per_round.append(said)
        if self._listener is None:
            return
        training_round = number - self.schedule.opening
        for i, loss in enumerate(losses.tolist()):
            fields: dict[str, Any] = {
                "round": number,
                "training_round": training_round,
                "stage": stage,
                "loss": loss if np.isfinite(loss) else None,
                "metrics": {},
            }
            fact = Fact(event="round committed", level="info", fields=fields)
            self._listener(float(self.round), i, fact)
