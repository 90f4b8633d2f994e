"""A process that runs trials for sweep.py: `python -m p2pfl.simulations.trial_worker PARENT`.

One JSON object a line: in, a scenario's name, spec, simulation; out, its verdict or an error's kind and text.
What trials print goes to standard error.  It ends with its input, and the kernel kills it with its parent.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import msgspec

from p2pfl.errors import P2PFLError
from p2pfl.node.learner_child import die_with
from p2pfl.run import RunSpec

from .scenario import Scenario, SimulationOptions
from .trial import run_trial

__all__ = ["main"]


def main(parent: int) -> None:
    """Serve `parent`, a process id, until it closes the pipe or dies."""
    die_with(parent)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")
            answers.flush()


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    scenario = Scenario(
        name=order["name"],
        spec=msgspec.convert(order["spec"], RunSpec),
        simulation=msgspec.convert(order["simulation"], SimulationOptions),
        expectations=(),
    )
    try:
        return {"verdict": run_trial(scenario)}
    except P2PFLError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main(int(sys.argv[1]))
