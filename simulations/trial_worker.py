"""Who runs trials for parallel.py: a process, `python -m p2pfl.simulations.trial_worker PARENT`, or Ray's.

One JSON object a line: in, a scenario's name, spec and simulation, its cell, and what is to become of its
events: null, the path of a file, whose key is beside it, or "" to have them told; out, an empty object once
it is there, then for each order its verdict and events, or an error's kind and text.  What trials of the
process print goes to standard error.  It ends with its input, and the kernel kills it with its parent.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from p2pfl.errors import P2PFLError
from p2pfl.node.learner_child import die_with
from p2pfl.run import RunSpec

from . import event_file
from .scenario import Scenario, SimulationOptions
from .trial import run_trial

__all__ = ["TrialWorker", "main"]


def main(parent: int) -> None:
    """Serve `parent`, a process id, until it closes the pipe or dies."""
    die_with(parent)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        answers.write("{}\n")
        answers.flush()
        for line in sys.stdin:
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")
            answers.flush()


class TrialWorker:
    """The same within a worker of Ray."""

    def ready(self) -> None:
        """Return, once what trials need was imported."""

    def answer(self, order: str) -> str:
        """The answer to an order, both a line of JSON."""
        return json.dumps(_answer(json.loads(order)))


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    scenario = Scenario(
        name=order["name"],
        spec=msgspec.convert(order["spec"], RunSpec),
        simulation=msgspec.convert(order["simulation"], SimulationOptions),
        expectations=(),
    )
    events: list[dict[str, Any]] | None = None if order["events"] is None else []
    try:
        verdict = run_trial(scenario, cell=order["cell"], events=events)
        if events is not None and order["events"]:
            event_file.write(Path(order["events"]), events, order["trial"])
            events = None
        return {"verdict": verdict, "events": events}
    except P2PFLError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main(int(sys.argv[1]))
