"""What an exchange of knowledge came to: how well edges and hubs classify, and the bytes of their packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Metrics, Vector
from p2pfl.run import RunSpec

from .machine import Machine
from .verdict import spread

__all__ = ["computed", "exchanged", "keeps_a_part", "measured", "worth_of"]

# What a learner calls a metric of the hub's model on its own features; see learn/split_learner.py.
_COMPOSITE = "hub_"


def exchanged(machines: Sequence[Machine], spec: RunSpec, name: str) -> dict[str, Any] | None:
    """`knowledge` of a verdict on `machines`, the honest ones, which are up; None without an exchange.

    edge: metric `name` of the machines' own models, a mean.   hub: of the hub's model on their features, a
    mean over those that hold one (`holders`); None where nobody does.   bytes: of packets' bodies, offered,
    per machine and round.   Each is judged by the learner as its run left it, on its site's test rows, which
    are those that all have in common unless each file of the data is a site.   Raises LearnerError.
    """
    if spec.knowledge.exchange.kind == "none":
        return None
    told = [
        int(fact.fields["bytes"])
        for machine in machines
        for _, fact in machine.facts
        if fact.event == "knowledge exchanged"
    ]
    worth = worth_of([measured(machine) for machine in machines], spec, name)
    return {**worth, "bytes": sum(told) / max(1, len(machines) * spec.run.rounds)}


def worth_of(metrics: Sequence[Metrics], spec: RunSpec, name: str) -> dict[str, Any]:
    """The fields of `exchanged` but for bytes, of what each site's own learner measured."""
    composites = [one[_COMPOSITE + name] for one in metrics if _COMPOSITE + name in one]
    return {
        "kind": spec.knowledge.exchange.kind,
        "edge": float(np.mean([one[name] for one in metrics])),
        "hub": float(np.mean(composites)) if composites else None,
        "holders": len(composites),
    }


def computed(machines: Sequence[Machine], spec: RunSpec) -> dict[str, float] | None:
    """`compute` of a verdict: multiply-adds of `machines` a round, mean, least and greatest.

    None unless all were counted: their learners are torch's, and the scenario asked for it.
    """
    if not machines or not all(machine.multiply_adds for machine in machines):
        return None
    return spread([machine.multiply_adds / spec.run.rounds for machine in machines])


def keeps_a_part(spec: RunSpec) -> bool:
    """Whether sites keep something to themselves (layers, a private model) that a model's vector lacks."""
    return spec.knowledge.exchange.kind == "proxy" or spec.learner.share != ("*",)


def measured(machine: Machine, parameters: Vector | None = None) -> Metrics:
    """Of the machine's model, or of `parameters`, by its own learner with what that keeps to itself.

    Raises LearnerError.
    """
    assert machine.peer is not None
    state = machine.peer.state
    model = machine.peer.model() if parameters is None else parameters
    job = Evaluate(round=state.round, parameters=model, statistics=state.pooled)
    # A machine that came back after its last fit has a learner that knows no hub's model yet.
    found = machine.workshop.evaluate(job, b"" if state.learner_restored else state.learner_state)
    if machine.workshop.fault:
        raise LearnerError(machine.workshop.fault)
    return found.metrics
