"""One trial: a scenario under one seed, from its data to its verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from p2pfl.aggregation import conserves_mass
from p2pfl.errors import LocalError
from p2pfl.events import Fact, Vector
from p2pfl.ids import PeerId
from p2pfl.learn.learner import Site
from p2pfl.net.transport import INLINE_BODY_BYTES

from . import churn, classes, verdict
from .attacks import TRIGGERED_KINDS, AttackOptions
from .byzantine import ByzantinePeer
from .churn import ChurnOptions
from .classes import Lines
from .fleet_trial import run_fleet
from .leakage import leaks
from .machine import Machine, SimulatedSite, identities
from .mass_audit import audit, books_on
from .pace import pace
from .placement import VICTIM, admitted, cut_off, honest_count
from .poisoning import byzantine_site
from .population import Population
from .recorder import Recorder
from .scenario import NetworkOptions, Scenario
from .taught import computed, exchanged, keeps_a_part, measured
from .workload import Workload, cut
from .world import World

__all__ = ["make_world", "run_trial"]

# Machines down at the end are started again this often, so that nobody's run is cut short by a late crash.
_REVIVALS = 8


def make_world(
    scenario: Scenario, workload: Workload, *, listener: Callable[[float, int, Fact], None] | None = None
) -> World:
    """The world of a scenario, with its attackers and its churn, before anything has happened.

    workload: the sites of the honest peers.
    """
    spec, options = scenario.spec, scenario.simulation
    fits = options.fit_s if isinstance(options.fit_s, tuple) else (options.fit_s,)
    factors = classes.factors(options.speed, options.peers, spec.run.seed).tolist()
    honest = honest_count(options.attack, options.peers)
    sites = [
        SimulatedSite(
            factory=workload.factory,
            site=site,
            fit_s=fits[i % len(fits)] * factors[i],
            learn_s=None if options.learn_s is None else options.learn_s * factors[i],
            evaluate_s=options.evaluate_s * factors[i],
            # Nobody is there to say `p2pfl trust set`: an agreement that would share features does.
            shares_features=bool(spec.knowledge.exchange.share_features),
            shuffles_teacher=options.control == "shuffled-teacher",
            meters=options.compute,
        )
        for i, site in enumerate(_sites(scenario, workload))
    ]

    keys = identities(options.peers, spec.run.seed)
    positions = {key.peer_id: i for i, key in enumerate(keys)}
    machines: list[Machine] = []

    def sees(name: PeerId) -> Vector | None:
        peer = machines[positions[name]].peer
        return None if peer is None else peer.model()

    # An attacker sees every model as it is, and acts after the honest of the same moment.
    around = partial(
        ByzantinePeer,
        attack=options.attack,
        is_byzantine=lambda name: positions[name] >= honest,
        sees=sees,
        victim=keys[VICTIM].peer_id,
    )
    sites[honest:] = [replace(site, around=around) for site in sites[honest:]]
    slowest_s = max(site.fit_s for site in sites)
    link = options.network.link()
    world = World(
        spec,
        sites,
        link=link,
        links=Lines(options.access, link, options.peers, spec.run.seed).between if options.access else None,
        partitions=(
            *options.network.cuts(),
            *cut_off(options.attack, options.peers, slowest_s, spec.run.rounds),
        ),
        begin=admitted(spec, options.attack, keys),
        crypto=options.crypto,
        inline_bytes=INLINE_BODY_BYTES,
        awaited=honest,
        listener=listener,
    )
    machines += world.machines
    end_s = spec.run.rounds * slowest_s
    churn.apply(world, churn.draw(options.churn, options.peers, end_s, spec.run.seed))
    return world


def _sites(scenario: Scenario, workload: Workload) -> list[Site]:
    """The honest peers' sites, then the attackers'.   workload: that of the honest."""
    spec, attack, peers = scenario.spec, scenario.simulation.attack, scenario.simulation.peers
    honest = honest_count(attack, peers)
    return [
        workload.site(i, spec) if i < honest else byzantine_site(workload, attack, spec, i - honest)
        for i in range(peers)
    ]


def run_trial(
    scenario: Scenario,
    *,
    listener: Callable[[float, int, Fact], None] | None = None,
    cell: Mapping[str, str] | None = None,
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The verdict on a scenario.  Raises LocalError when the run does not end, ConfigError, LearnerError.

    cell: its place in a grid.   events: what is recorded of the run is added to it (recorder.py); None
    records, and measures on the way, nothing.
    """
    spec, options = scenario.spec, scenario.simulation
    if options.kernels == "fused":
        return run_fleet(scenario, listener, cell=cell, events=events)
    honest = honest_count(options.attack, options.peers)
    workload = cut(spec, honest, options.partition, sources=options.data, roles=options.roles)
    world: World | None = None
    recorder = None if events is None else Recorder(scenario, workload, cell)
    if options.engine == "population":
        ran = _run_population(scenario, workload, listener, recorder)
    else:
        world, wall_s = _run(scenario, workload, listener, recorder)
        ran = _ran(world, options.attack, wall_s)
    result = verdict.verdict(ran, workload, spec, metric=options.metric, with_baselines=options.baselines)
    honest_ones = [] if world is None else world.machines[:honest]
    result["knowledge"] = exchanged(honest_ones, spec, result["metric"]["name"])
    result["compute"] = computed(honest_ones, spec)
    if options.leakage:
        result["leakage"] = leaks(honest_ones, spec)
    if options.attack.kind in TRIGGERED_KINDS:
        result["backdoor"] = verdict.spread(verdict.backdoor(workload, options.attack, spec, ran.models))
    if options.reference == "perfect-network":
        result["reference"] = _reference(scenario, workload, result["metric"]["name"])
    if recorder is not None and events is not None:
        recorder.finish(result)
        events += recorder.events
    return {**result, "scenario": scenario.name}


def _run(
    scenario: Scenario,
    workload: Workload,
    listener: Callable[[float, int, Fact], None] | None,
    recorder: Recorder | None = None,
) -> tuple[World, float]:
    began = time.perf_counter()

    def hear(now: float, index: int, fact: Fact) -> None:
        if recorder is not None:
            recorder.hear(now, index, fact)
        if listener is not None:
            listener(now, index, fact)

    world = make_world(scenario, workload, listener=hear)
    if recorder is not None:
        recorder.watch(world)
    for _ in range(_REVIVALS):
        ended = world.run(until_s=scenario.simulation.until_s)
        down = [m.index for m in world.machines if not m.is_up]
        if ended and not down:
            if recorder is not None:
                recorder.close()
            return world, time.perf_counter() - began
        for index in down:
            world.boot(index)
    stuck = [
        f"{m.index} {m.peer.view().phase} ({m.peer.view().reason})"
        for m in world.machines
        if m.peer and not m.finished
    ]
    raise LocalError(
        f"the run has not ended after {world.now:g} virtual seconds; peers {', '.join(stuck) or 'are down'};"
        " raise simulation.until_s, or look at the network's faults"
    )


def _ran(world: World, attack: AttackOptions, wall_s: float) -> verdict.Ran:
    spec = world.spec
    honest = world.machines[: honest_count(attack, len(world.machines))]
    peers = [world.peer(machine.index) for machine in honest]
    # Of the honest alone: what went to attackers counts as gone, and what came from them as come.
    mass = audit(map(books_on, honest))
    views = [peer.view() for peer in peers]
    rows: Sequence[dict[str, Any]] = [
        {
            "peer_id": view.me,
            "w": view.w,
            "entered": view.entered,
            "written_off": view.written_off,
            "in_flight": view.in_flight,
            "bytes_sent": machine.bytes_sent,
            "finished": view.finished,
            "multiply_adds": machine.multiply_adds or None,
            "own_metrics": dict(view.metrics),
        }
        for machine, view in zip(honest, views, strict=True)
    ]
    is_conserved = conserves_mass(spec)
    return verdict.Ran(
        engine="world",
        models=[peer.model() for peer in peers],
        measured=[measured(machine) for machine in honest] if keeps_a_part(spec) else None,
        mass={"sum": mass.sum, "expected": mass.expected, "error": mass.error} if is_conserved else None,
        bytes_sent=sum(machine.bytes_sent for machine in world.machines),
        wall_s=wall_s,
        rounds=spec.run.rounds,
        attack=attack.kind if attack.kind != "none" else None,
        byzantine=attack.byzantine,
        per_peer=rows,
        extra={
            "virtual_s": world.now,
            "events": world.events,
            "online_loss": _online_loss(honest),
            "bounds_broken": sum(map(_has_broken_bound, honest)),
            "events_per_s": world.events / max(wall_s, 1e-9),
            "peer_rounds_per_s": len(world.machines) * spec.run.rounds / max(wall_s, 1e-9),
        },
    )


def _run_population(
    scenario: Scenario,
    workload: Workload,
    listener: Callable[[float, int, Fact], None] | None,
    recorder: Recorder | None,
) -> verdict.Ran:
    began = time.perf_counter()
    spec, options = scenario.spec, scenario.simulation
    population = Population(
        spec,
        workload.factory,
        _sites(scenario, workload),
        control=options.control,
        attack=options.attack,
        consensus_every=options.consensus_every,
        is_vmapped=options.kernels == "vmap",
        listener=listener,
    )
    while not population.is_over:
        population.step()
        if recorder is not None:
            recorder.after_round(population)
    population.finish()
    wall_s = time.perf_counter() - began
    sent = population.sent_bodies * population.body_bytes()
    attack, honest = options.attack, population.honest
    return verdict.Ran(
        engine="population",
        models=list(population.models()[:honest]),
        mass=population.mass(),
        bytes_sent=int(sent.sum()),
        wall_s=wall_s,
        rounds=spec.run.rounds,
        attack=attack.kind if attack.kind != "none" else None,
        byzantine=attack.byzantine,
        per_peer=[
            {
                "peer_id": name,
                "w": float(population.held.w[i]),
                "entered": float(population.nominal[i]),
                "written_off": 0.0,
                "in_flight": 0.0,
                "bytes_sent": int(sent[i]),
                "finished": "done",
                "failed_fits": int(population.faults[i]),
            }
            for i, name in enumerate(population.names[:honest])
        ],
        extra={
            "control": options.control,
            "online_loss": population.online_loss(),
            "per_round": population.per_round,
            "mixing": pace(population.per_round),
            "bounds_broken": max((said.get("bounds_broken", 0) for said in population.per_round), default=0),
            "peer_rounds_per_s": options.peers * spec.run.rounds / max(wall_s, 1e-9),
        },
    )


def _has_broken_bound(machine: Machine) -> bool:
    return any(fact.event == "robust bound broken" for _, fact in machine.facts)


def _online_loss(machines: Sequence[Machine]) -> float | None:
    """The mean training loss over peers and rounds; None where no learner says."""
    losses = [
        float(fact.fields["loss"])
        for machine in machines
        for _, fact in machine.facts
        if fact.event == "round committed" and fact.fields["loss"] is not None
    ]
    return math.fsum(losses) / len(losses) if losses else None


def _reference(scenario: Scenario, workload: Workload, name: str) -> dict[str, float]:
    options = msgspec.structs.replace(
        scenario.simulation, network=NetworkOptions(), access={}, churn=ChurnOptions()
    )
    perfect = replace(scenario, simulation=options)
    world, _ = _run(perfect, workload, None)
    models = [world.peer(i).model() for i in range(len(workload.datasets))]
    measured = verdict.judge_models(workload, scenario.spec, models)
    return verdict.spread([metrics[name] for metrics in measured])
