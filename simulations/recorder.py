"""What a trial is like on the way: its time series, as the events of an event file.

Theory of operation.  A recorder looks at a run from outside and changes no bit of it: models are read, and
measured by learners of its own.  Of each round it says one event when the last honest peer has committed that
round or a later one, so that a crashed peer holds rounds back and never loses them; what each peer had when
it committed is what the event is made of.  Size is bounded: some 500 rounds, 1,024 peers and 3,000 links at
most, and the values of single peers only where there are few.

The events are documented in docs/configuration.md; the page that draws them is p2pfl/node/dashboard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.aggregation import conserves_mass
from p2pfl.errors import LearnerError
from p2pfl.events import Fact, Vector
from p2pfl.learn.metrics import consensus_distance
from p2pfl.node.plain import plain
from p2pfl.schedule import Schedule, schedule

from .mass_audit import audit, books_on
from .placement import honest_count
from .population import Population
from .run_card import evenly, run_card
from .scenario import Scenario
from .taught import keeps_a_part
from .taught import measured as measured_by
from .verdict import judge, name_of
from .workload import Workload
from .world import World

__all__ = ["VERSION", "Recorder"]

# Raised when an event changes its meaning.
VERSION = 1
# A line of some 200 bytes each: 100 kB a trial, and more points than a chart has pixels.
_ROUNDS = 500
# Rounds at which models are measured unless the scenario says how often, and how many models are: 160
# evaluations on 360 digits took .5 s of processor time, a trial of 20 peers and 81 rounds without them 2.2 s.
_MEASURED_ROUNDS = 20
_MEASURED_PEERS = 8
# Peers whose own values are in every round's event; beyond that a chart of single lines shows nothing.
_FEW_PEERS = 32
# Peers whose last values are listed.
_PEERS = 1024
# Auditing the books of n peers takes n^2 steps: .1 s at 256.
_AUDITED_PEERS = 256
# Warnings that are kept whole; all are counted.
_WARNINGS = 200


@dataclass(slots=True)
class _Open:
    """A round that some honest peers have still to commit.

    reached: how many have committed it or a later one.   total, squares: sums over those that committed it of
    how far their models are from `first`, the first such model, and of the squared distances.
    """

    reached: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    measured: dict[int, float] = field(default_factory=dict)
    first: NDArray[np.float64] | None = None
    total: NDArray[np.float64] | None = None
    squares: float = 0.0

    def add(self, model: Vector) -> None:
        """Count a peer's model in the consensus distance, of which there is none between different models."""
        if self.first is not None and model.size != self.first.size:
            self.squares = math.nan
            return
        x = model.astype(np.float64)
        if self.first is None or self.total is None:
            self.first, self.total = x, np.zeros_like(x)
        with np.errstate(all="ignore"):  # of a model that has diverged
            gap = x - self.first
            self.total += gap
            self.squares += float(np.vdot(gap, gap))

    def distance(self) -> float | None:
        """The consensus distance of the models that were added."""
        n = len(self.weights)
        if self.total is None or n == 0:
            return None
        with np.errstate(all="ignore"):
            variance = self.squares / n - float(np.vdot(self.total, self.total)) / n**2
        return math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else None


class Recorder:
    """The events of one trial, in `events`.  Give it a world or a population, and then the verdict."""

    def __init__(self, scenario: Scenario, workload: Workload, cell: Mapping[str, str] | None = None) -> None:
        """workload: the sites of the honest peers.   cell: the scenario's place in its grid."""
        spec, options = scenario.spec, scenario.simulation
        self.events: list[dict[str, Any]] = []
        self._scenario, self._honest = scenario, honest_count(options.attack, options.peers)
        self._schedule: Schedule = schedule(spec)
        total = self._schedule.total
        self._kept = frozenset(evenly(total, _ROUNDS))
        self._due = frozenset(_due(total, options.measure_every))
        sample = evenly(self._honest, _MEASURED_PEERS)
        self._judge = judge(workload, spec)
        self._sample = frozenset(sample)
        self._metric = options.metric
        self._has_mass = conserves_mass(spec) and options.control == "none"
        self._is_few = self._honest <= _FEW_PEERS
        self._warnings: Counter[str] = Counter()
        # The rounds of a world that are under way, and the last that each peer has committed.
        self._world: World | None = None
        self._open: dict[int, _Open] = {}
        self._last = [-1] * self._honest
        self._said = 0
        # A population's clock, and the bodies it had sent a round ago.
        self._at = 0.0
        self._bodies = np.zeros(options.peers, np.int64)
        self._say("run began", **run_card(scenario, cell or {}, self._schedule))

    def finish(self, verdict: Mapping[str, Any]) -> None:
        """Say how it ended; the rounds that were still open come first."""
        name = verdict["metric"]["name"]
        rows = [verdict["per_peer"][i] for i in evenly(len(verdict["per_peer"]), _PEERS)]
        whole = (
            "metric",
            "pooled",
            "alone",
            "consensus_distance",
            "mass",
            "bytes_sent",
            "bytes_per_peer_round",
        )
        columns = {
            "peer": [row["peer"] for row in rows],
            "metric": [row["metrics"].get(name) for row in rows],
            "w": [row.get("w") for row in rows],
            "bytes_sent": [row.get("bytes_sent") for row in rows],
        }
        values = np.array([row["metrics"].get(name, np.nan) for row in verdict["per_peer"]], np.float64)
        # The deciles of all peers, whose own values may be too many to keep.
        deciles = np.quantile(values, np.linspace(0, 1, 11)).tolist() if values.size else []
        self._say(
            "run finished",
            **{key: verdict.get(key) for key in whole},
            virtual_s=verdict.get("virtual_s", self._at),
            wall_s=verdict["wall_s"],
            peak_rss_mb=verdict["peak_rss_mb"],
            reference=verdict.get("reference"),
            backdoor=verdict.get("backdoor"),
            bounds_broken=verdict.get("bounds_broken"),
            per_peer=columns,
            deciles=deciles,
            warnings=dict(sorted(self._warnings.items())),
        )

    # --- a world -------------------------------------------------------------------------------------

    def watch(self, world: World) -> None:
        """Look at `world`, in which nothing has happened yet, whenever it tells a fact."""
        self._world = world

    def hear(self, now: float, index: int, fact: Fact) -> None:
        """Take in a fact of peer `index` of the world that is watched."""
        if fact.level in ("warning", "error"):
            self._warnings[fact.event] += 1
            if self._warnings.total() <= _WARNINGS:
                self._say("fact", at=now, peer=index, fact=fact.event, level=fact.level)
        if fact.event == "round committed" and index < self._honest:
            self._committed(now, index, fact)

    def _committed(self, now: float, index: int, fact: Fact) -> None:
        assert self._world is not None
        number, peer = int(fact.fields["round"]), self._world.machines[index].peer
        if number <= self._last[index] or peer is None:
            return  # once more, after its disk was lost
        for passed in range(self._last[index] + 1, number + 1):
            self._open.setdefault(passed, _Open()).reached += 1
        self._last[index] = number
        one = self._open[number]
        if number in self._kept:
            loss = fact.fields.get("loss")
            if loss is not None:
                one.losses[index] = float(loss)
            one.weights[index] = float(fact.fields["w"])
            one.add(peer.model())
        if number in self._due and index in self._sample:
            self._measure(one.measured, index, peer.model())
        while (ready := self._open.get(self._said)) is not None and ready.reached == self._honest:
            self._close(now)

    def close(self) -> None:
        """Say the rounds that not everybody has committed; the world is over."""
        assert self._world is not None
        while self._said in self._open:
            self._close(self._world.now)

    def _close(self, now: float) -> None:
        assert self._world is not None
        machines = self._world.machines
        number = self._said
        one = self._open.pop(number)
        self._said += 1
        if number not in self._kept or not one.weights:
            return
        mass = None
        if self._has_mass and self._honest <= _AUDITED_PEERS:
            found = audit(map(books_on, machines[: self._honest]))
            mass = {"sum": found.sum, "expected": found.expected, "error": found.error}
        self._round(
            number,
            now,
            one.losses,
            one.weights,
            one.measured,
            distance=one.distance(),
            mass=mass,
            bytes_sent=sum(machine.bytes_sent for machine in machines),
        )

    # --- a population --------------------------------------------------------------------------------

    def after_round(self, population: Population) -> None:
        """Look at `population`, which has just taken a step."""
        number, honest = population.round - 1, self._honest
        self._at += self._round_s(number)
        bodies = population.sent_bodies - self._bodies
        self._bodies = population.sent_bodies.copy()
        if number not in self._kept:
            return
        models = population.models()
        measured: dict[int, float] = {}
        if number in self._due:
            for i in sorted(self._sample):
                self._measure(measured, i, models[i])
        mass = None
        if self._has_mass and honest == population.n:
            flying = float((population.sent.w * bodies).sum())
            held, expected = float(population.held.w.sum()), float(population.nominal.sum())
            mass = {
                "sum": held + flying,
                "expected": expected,
                "error": abs(held + flying - expected) / expected,
            }
        losses = population.losses[:honest].tolist()
        with np.errstate(all="ignore"):  # of models that have diverged
            distance = consensus_distance(models[:honest])
        self._round(
            number,
            self._at,
            {i: loss for i, loss in enumerate(losses) if math.isfinite(loss)},
            dict(enumerate(population.held.w[:honest].tolist())),
            measured,
            distance=distance,
            mass=mass,
            bytes_sent=int(population.sent_bodies.sum()) * population.body_bytes(),
        )

    def _round_s(self, number: int) -> float:
        """What a round would take in a world: its fit, and where nobody trains the latency."""
        options = self._scenario.simulation
        fits = options.fit_s if isinstance(options.fit_s, tuple) else (options.fit_s,)
        latency = options.network.latency_s
        latency_s = latency[1] if isinstance(latency, tuple) else latency
        return max(max(fits), latency_s) if self._schedule.stage(number) == "training" else latency_s

    # --- a fused population --------------------------------------------------------------------------

    def is_due(self, number: int) -> bool:
        """Whether models are measured after round `number`."""
        return number in self._due

    def after_fused(
        self, said: Mapping[str, Any], losses: NDArray[np.float32], peers: int, bytes_sent: int
    ) -> None:
        """Take in a round of `peers` whose models nobody reads one by one.

        said: its entry of `per_round`.   losses: of those that trained in it, NaN where a fit failed.
        """
        number = int(said["round"])
        self._at = said.get("at", self._at + self._round_s(number))
        if number not in self._kept:
            return
        known = losses[np.isfinite(losses)]
        loss = None
        if said["loss"] is not None:
            loss = {"mean": said["loss"], "min": float(known.min()), "max": float(known.max())}
        fields: dict[str, Any] = {
            "round": number,
            "stage": said["stage"],
            "at": self._at,
            "peers": peers,
            "loss": loss,
            "consensus_distance": said.get("consensus_distance"),
            "mass": None,
            "w": None,
            "bytes_sent": bytes_sent,
        }
        if "metric" in said:
            fields["metric"] = said["metric"]
        self._say("round", **fields)

    # --- both ----------------------------------------------------------------------------------------

    def _measure(self, measured: dict[int, float], index: int, model: Vector) -> None:
        try:
            if self._world is not None and keeps_a_part(self._scenario.spec):
                metrics = measured_by(self._world.machines[index], model)
            else:
                metrics = self._judge(index, model)
        except LearnerError:
            return  # a model that cannot be judged now may be well again at the end, where it has to be
        self._metric = self._metric or name_of(metrics)
        if self._metric in metrics:
            measured[index] = metrics[self._metric]

    def _round(
        self,
        number: int,
        at: float,
        losses: Mapping[int, float],
        weights: Mapping[int, float],
        measured: Mapping[int, float],
        *,
        distance: float | None,
        mass: Mapping[str, float] | None,
        bytes_sent: int,
    ) -> None:
        said: dict[str, Any] = {"round": number, "stage": self._schedule.stage(number), "at": at}
        said["peers"] = len(weights)
        said["loss"] = _spread(losses.values())
        said["consensus_distance"] = distance
        said["mass"] = mass
        said["w"] = _spread(weights.values()) if self._has_mass else None
        said["bytes_sent"] = bytes_sent
        if measured:
            said["metric"] = {"name": self._metric, **(_spread(measured.values()) or {})}
            if self._is_few:
                said["by_peer"] = {str(i): measured[i] for i in sorted(measured)}
        self._say("round", **said)

    def _say(self, event: str, **fields: Any) -> None:
        self.events.append({"v": VERSION, "event": event, **plain(_rounded(fields))})


def _due(total: int, every: int | None) -> Iterable[int]:
    """The rounds after which models are measured: the first, the last, and each so many between."""
    if every == 0 or total == 0:
        return ()
    every = math.ceil(total / _MEASURED_ROUNDS) if every is None else every
    return {0, *range(every - 1, total, every), total - 1}


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found: Sequence[float] = list(values)
    if not found:
        return None
    return {"mean": math.fsum(found) / len(found), "min": min(found), "max": max(found)}


def _rounded(value: Any) -> Any:
    """Floats with six digits, which is more than a chart shows; the rest as it is."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case Mapping():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value
