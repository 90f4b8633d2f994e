"""How many peers a simulation may have, and what each engine, its kernels and its schedules leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from p2pfl.aggregation import is_capped
from p2pfl.errors import ConfigError
from p2pfl.gossip.options import CompressionOptions
from p2pfl.knowledge.options import KnowledgeOptions
from p2pfl.run import RunSpec
from p2pfl.trust.options import TrustOptions

from .attacks import WORLD_KINDS
from .churn import ChurnOptions

if TYPE_CHECKING:
    from .scenario import SimulationOptions

__all__ = ["MOST_FUSED", "MOST_PEERS", "check_engine"]

# Peers that are objects or have a key: what an agreement's members_at_start allows, too.
MOST_PEERS = 4096
# Rows of one matrix: a peer's number fits float32 exactly, and 16 times a million is beyond one machine.
MOST_FUSED = 2**24
# The greatest latency of a schedule in slots: a draw of 32 bits spreads it over microseconds.
_MOST_LATENCY_S = 4000.0


def check_engine(spec: RunSpec, simulation: SimulationOptions, where: str) -> None:
    """Refuse what the engine cannot do.  Raises ConfigError that names the key.

    spec, simulation: checked, each by itself.
    """
    if simulation.kernels == "fused":
        cure = "--engine population" if simulation.engine == "ray" else 'simulation.kernels = "exact"'
        _refuse(_beyond_fused(spec, simulation), where, "fused kernels have", cure)
    elif simulation.active or simulation.resume != "own" or simulation.device != "cpu":
        raise ConfigError(
            f'{where}: simulation.active, resume and device are for kernels = "fused"; leave them out'
        )
    elif simulation.schedule == "asynchronous":
        raise ConfigError(
            f'{where}: simulation.schedule "asynchronous" is for engine = "population", kernels = "fused";'
            ' the peers of engine "world" wait for nobody beyond run.deadline_s'
        )
    elif simulation.peers > MOST_PEERS:
        raise ConfigError(
            f"{where}: simulation.peers is {simulation.peers}, and peers with a key each are at most"
            f' {MOST_PEERS}; set engine = "population", kernels = "fused" for up to {MOST_FUSED}'
        )
    if simulation.engine == "world":
        if simulation.control == "shuffled-teacher" and spec.knowledge.exchange.kind != "hub":
            raise ConfigError(
                f'{where}: simulation.control = "shuffled-teacher" shuffles what hubs teach, and'
                f" knowledge.exchange.kind is {spec.knowledge.exchange.kind!r}; choose control none"
            )
        is_rows = simulation.consensus_every or simulation.kernels != "exact"
        if simulation.control not in ("none", "shuffled-teacher") or is_rows:
            raise ConfigError(
                f'{where}: simulation.control, kernels and consensus_every are for engine "population"; add'
                " --engine population"
            )
        return
    if simulation.schedule == "asynchronous":
        _refuse(_beyond_slots(spec, simulation), where, "an asynchronous schedule has", "--engine world")
    else:
        _refuse(_beyond_rounds(spec, simulation), where, "the population engine has", "--engine world")
    _refuse(_beyond_population(spec, simulation), where, "the population engine has", "--engine world")


def _refuse(checks: Mapping[str, bool], where: str, who: str, instead: str) -> None:
    """Raise ConfigError that names the first thing that is not there."""
    for what, can in checks.items():
        if not can:
            raise ConfigError(f"{where}: {who} no {what}; use {instead}")


def _beyond_rounds(spec: RunSpec, simulation: SimulationOptions) -> dict[str, bool]:
    """What rounds in which nobody is late leave out, and whether a scenario does without."""
    network, fits = simulation.network, simulation.fit_s
    latency = network.latency_s if isinstance(network.latency_s, tuple) else (network.latency_s,) * 2
    fit_s = max(fits) if isinstance(fits, tuple) else fits
    return {
        "simulation.churn": simulation.churn == ChurnOptions(),
        "simulation.network.loss, duplication or reorder": not (
            network.loss or network.duplication or network.reorder
        ),
        "simulation.network.latency_s as a range": latency[0] == latency[1],
        "simulation.speed": not simulation.speed,
        "simulation.fit_s with unequal times": not isinstance(fits, tuple) or len(set(fits)) == 1,
        "simulation.fit_s and latencies beyond run.deadline_s": fit_s + 2 * latency[0] < spec.run.deadline_s,
    }


def _beyond_slots(spec: RunSpec, simulation: SimulationOptions) -> dict[str, bool]:
    """The same of peers on their own clocks."""
    network, churn = simulation.network, simulation.churn
    latency = network.latency_s if isinstance(network.latency_s, tuple) else (network.latency_s,) * 2
    return {
        "averaging but push-sum": spec.gossip.averaging.kind == "push-sum",
        "gossip.topology drawn anew every round": not spec.gossip.topology.is_redrawn,
        "simulation.network.latency_s below a microsecond or above 4,000 s": latency[0] >= 1e-6
        and latency[1] <= _MOST_LATENCY_S,
        "simulation.network.duplication or reorder": not (network.duplication or network.reorder),
        "simulation.churn but crashes of any peer": not (
            churn.lost_disks or churn.restored_backups or churn.peers
        ),
        "simulation.active": not simulation.active,
    }


def _beyond_population(spec: RunSpec, simulation: SimulationOptions) -> dict[str, bool]:
    """The same of peers that are rows of a matrix."""
    trust = msgspec.structs.replace(spec.trust, founders=(), quorum=1, aggregator=TrustOptions().aggregator)
    attack = simulation.attack
    return {
        f"simulation.attack {attack.kind!r}": attack.kind not in WORLD_KINDS,
        f"simulation.attack with control {simulation.control!r}": not attack.byzantine
        or simulation.control not in ("centralised", "without-weights"),
        "simulation.control 'shuffled-teacher'": simulation.control != "shuffled-teacher",
        "simulation.network.bandwidth_mbit_s": not simulation.network.bandwidth_mbit_s,
        "simulation.network.partitions": not simulation.network.partitions,
        "simulation.access": not simulation.access,
        "simulation.crypto": not simulation.crypto,
        "simulation.compute": not simulation.compute,
        "simulation.reference": simulation.reference == "none",
        "run.members_at_start below simulation.peers": spec.run.members_at_start
        == min(simulation.peers, MOST_PEERS),
        "trust table but for founders and aggregator": trust == TrustOptions(),
        "gossip.compression": spec.gossip.compression == CompressionOptions(),
        "trust.aggregator 'capped-share'": not is_capped(spec),
        "learner.roles": not spec.learner.roles,
        "knowledge exchange": spec.knowledge == KnowledgeOptions(),
    }


def _beyond_fused(spec: RunSpec, simulation: SimulationOptions) -> dict[str, bool]:
    """The same of fused kernels."""
    learner, optimizer = spec.learner, spec.learner.optimizer
    return {
        "simulation.engine 'world'": simulation.engine != "world",
        "simulation.active on Ray": not simulation.active or simulation.engine != "ray",
        "simulation.device 'cuda' on Ray, or with a schedule of its own": simulation.device == "cpu"
        or (simulation.engine == "population" and simulation.schedule == "synchronous"),
        "simulation.schedule 'asynchronous' on Ray": simulation.schedule == "synchronous"
        or simulation.engine != "ray",
        "simulation.control": simulation.control == "none",
        "simulation.attack": not simulation.attack.byzantine,
        "simulation.data, a source for each site": not simulation.data,
        "learner.module": not learner.module,
        "learner.model 'cnn'": learner.model is None or learner.model.kind != "cnn",
        "learner.standardise": learner.standardise == "none",
        "learner.share of some layers": learner.share == ("*",),
        "learner.optimizer.reset = false": optimizer.reset or not optimizer.momentum,
        "gossip.averaging 'push-pull'": spec.gossip.averaging.kind != "push-pull",
        "trust.aggregator": spec.trust.aggregator == TrustOptions().aggregator,
        "simulation.active beyond simulation.peers": simulation.active <= simulation.peers,
        'run.weights "samples" with simulation.active': not simulation.active
        or spec.run.weights == "uniform",
        "simulation.active with device 'cuda'": not simulation.active or simulation.device == "cpu",
        "simulation.baselines": not simulation.baselines,
    }
