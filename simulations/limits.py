"""How many peers a simulation may have, and what fused kernels leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError
from p2pfl.run import RunSpec
from p2pfl.trust.options import TrustOptions

if TYPE_CHECKING:
    from .scenario import SimulationOptions

__all__ = ["MOST_FUSED", "MOST_PEERS", "refuse_beyond_fused"]

# Peers that are objects or have a key: what an agreement's members_at_start allows, too.
MOST_PEERS = 4096
# Rows of one matrix: a peer's number fits float32 exactly, and 16 times a million is beyond one machine.
MOST_FUSED = 2**24


def refuse_beyond_fused(spec: RunSpec, simulation: SimulationOptions, where: str) -> None:
    """Refuse what fused kernels cannot do.  Raises ConfigError that names the key.

    spec: checked.   simulation: the rest of what the population engine lacks is refused with it.
    """
    learner, optimizer = spec.learner, spec.learner.optimizer
    checks = {
        "simulation.engine other than 'population'": simulation.engine == "population",
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
    for what, can in checks.items():
        if not can:
            raise ConfigError(f'{where}: fused kernels have no {what}; use simulation.kernels = "exact"')
