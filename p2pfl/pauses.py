"""When a learner's answer counts as a failure, and what makes a peer stop until it has changed."""

from __future__ import annotations

import numpy as np

from p2pfl import plans, rounds
from p2pfl.events import Trained
from p2pfl.state import State

__all__ = ["cause_to_pause", "checked"]


def cause_to_pause(state: State) -> str:
    """Why this peer goes no further now, in a sentence for its people; empty when it does."""
    if state.held:
        return "paused by this site"
    if state.learner_faults >= rounds.LEARNER_FAULTS:
        times = state.learner_faults
        return f"the learner failed {times} times in a row; see `p2pfl log`, then `p2pfl run resume`"
    if state.low_rounds >= rounds.LOW_ROUNDS:
        into = plans.neighbours_of(state, max(0, state.round - 1))[0]
        up = state.neighbours.up()
        if not rounds.is_quorate(state, state.round, up):
            heard = len([p for p in up if p in into])
            quorum = f"the quorum is {state.spec.run.quorum:g} of them"
            return f"{heard} of {len(into)} neighbours are heard; {quorum}"
    return ""


def checked(event: Trained, d: int) -> Trained:
    """A fit's result, or a fault when it is not (d,) float32: a driver's mistake must not end a run."""
    z = event.parameters
    if z is None or (z.shape == (d,) and z.dtype == np.float32):
        return event
    fault = f"the fit gave {z.dtype} of shape {z.shape}, expected ({d},) float32"
    return Trained(round=event.round, parameters=None, fault=fault)
