"""What an exchange of knowledge came to: how well edges and hubs classify, and the bytes of their packets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate
from p2pfl.run import RunSpec

from .machine import Machine

__all__ = ["exchanged"]

# What a learner calls a metric of the hub's model on its own features; see learn/split_learner.py.
_COMPOSITE = "hub_"


def exchanged(machines: Sequence[Machine], spec: RunSpec, name: str) -> dict[str, Any] | None:
    """`knowledge` of a verdict on `machines`, the honest ones, which are up; None without an exchange.

    edge: metric `name` of the machines' own models, a mean.   hub: of the hub's model on their features, a
    mean over those that hold one (`holders`); None where nobody does.   bytes: of packets' bodies, offered,
    per machine and round.   Each is judged by the learner as its run left it, on its site's test rows, which
    are those that all have in common unless each file of the data is a site.   Raises LearnerError.
    """
    kind = spec.knowledge.exchange.kind
    if kind == "none":
        return None
    edges, composites = [], []
    for machine in machines:
        measured = _measured(machine)
        edges.append(measured[name])
        if _COMPOSITE + name in measured:
            composites.append(measured[_COMPOSITE + name])
    told = [
        int(fact.fields["bytes"])
        for machine in machines
        for _, fact in machine.facts
        if fact.event == "knowledge exchanged"
    ]
    return {
        "kind": kind,
        "edge": float(np.mean(edges)),
        "hub": float(np.mean(composites)) if composites else None,
        "holders": len(composites),
        "bytes": sum(told) / max(1, len(machines) * spec.run.rounds),
    }


def _measured(machine: Machine) -> dict[str, float]:
    assert machine.peer is not None
    state = machine.peer.state
    job = Evaluate(round=state.round, parameters=machine.peer.model(), statistics=state.pooled)
    # A machine that came back after its last fit has a learner that knows no hub's model yet.
    found = machine.workshop.evaluate(job, b"" if state.learner_restored else state.learner_state)
    if machine.workshop.fault:
        raise LearnerError(machine.workshop.fault)
    return dict(found.metrics)
