"""What hubs tell each other: their models where these are of one kind, or what they believe of a probe set.

A tier is the hubs of one split that a hub hears.  With `tier = "weights"` it is those of its own model: each
tells the others its model when it has learned, waits for theirs, and begins its next round with the mean of
them and its own.  With `tier = "probe"` models may differ: each tells its predictions on the run's probe set,
seen through its own extractor, waits for theirs, and begins its next round by learning what all believe.

`n` probe samples, `K` classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError
from p2pfl.ids import PeerId
from p2pfl.knowledge import bodies
from p2pfl.knowledge.beliefs import log_softmax
from p2pfl.knowledge.bodies import Body
from p2pfl.knowledge.consensus import applied, combine, whole, written
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub_state import HubState
from p2pfl.knowledge.options import ExchangeOptions, ProbeOptions
from p2pfl.knowledge.packets import Coding, Probe, probe_bytes
from p2pfl.knowledge.ranking import tiers
from p2pfl.work import Answered, Distill

__all__ = ["believed", "heard", "lesson", "models", "most_bytes", "packet", "partners", "untold"]

# A prediction is a byte a class; of a tier's few packets a round there is nothing to save by differences.
_CODING = Coding.INT8


def partners(state: HubState, me: PeerId, kind: str) -> tuple[PeerId, ...]:
    """The other hubs here that this hub exchanges with, in PeerId order.   kind: `tier` of the agreement.

    No features pass between them, so they need not be told any.
    """
    mine = state.hubs.get(me)
    if mine is None or kind == "none":
        return ()
    here = {peer: hub for peer, hub in state.hubs.items() if peer in state.hears}
    if kind == "probe":
        return tuple(sorted(peer for peer, hub in here.items() if hub.split == mine.split and peer != me))
    same = next(tier for tier in tiers(here | {me: mine}) if me in tier)
    return tuple(peer for peer in same if peer != me)


def models(state: HubState, others: tuple[PeerId, ...]) -> dict[PeerId, NDArray[np.float32]]:
    """What `others` learned in the round before, or in this one if they are ahead."""
    return {
        peer: said.values
        for peer, said in sorted(state.models.items())
        if peer in others and said.version >= state.round - 1
    }


def untold(state: HubState, others: tuple[PeerId, ...]) -> frozenset[PeerId]:
    """Who of `others` has not told what it learned in this round.

    A hub that did not wait would mix what had come by chance, and two runs alike would not end alike.
    """
    told = {peer: held.round for peer, held in state.beliefs.items()}
    told |= {peer: said.version for peer, said in state.models.items()}
    return frozenset(peer for peer in others if told.get(peer, -1) < state.round)


def lesson(state: HubState, others: tuple[PeerId, ...], options: ExchangeOptions) -> Distill | None:
    """What the tier believed when the last round ended, this hub among them; None when no other was heard."""
    least = state.round - 1
    held = {peer: one for peer, one in state.beliefs.items() if peer in others and one.round >= least}
    if not held or state.belief is None:
        return None
    said = [one for _, one in sorted(held.items())]
    p, is_used = combine([state.belief, *said], options["combine"], options["sharpen"])
    return Distill(
        p=p,
        is_used=is_used,
        alpha=options["alpha"],
        temperature=options["temperature"],
        epochs=options["epochs"],
        is_of_hub=True,
    )


def believed(state: HubState, result: Answered, probe: ProbeOptions, classes: int) -> HubState:
    """The hub model's predictions, as the others will hold them.  Raises LocalError on another shape."""
    log_p = log_softmax(result.logits)
    if log_p.shape != (probe.samples, classes):
        raise LocalError(
            f"a hub's predictions of shape {log_p.shape} on a probe set of {probe.samples} samples and"
            f" {classes} classes; check knowledge.probe and the hub's last layer"
        )
    vouched = np.ones(probe.samples, np.bool_)
    digest = bytes.fromhex(probe.digest)
    _, held = written(log_p, vouched, digest=digest, coding=_CODING, round_=state.round, before=None)
    return replace(state, belief=held)


def packet(state: HubState, probe: ProbeOptions) -> Probe | None:
    """The predictions of this round; None before they are made."""
    if state.belief is None or state.belief.round != state.round:
        return None
    return whole(state.belief, digest=bytes.fromhex(probe.digest), coding=_CODING)


def most_bytes(probe: ProbeOptions, classes: int) -> int:
    """The largest packet that a hub may send another: every prediction, and a mask."""
    return probe_bytes(probe.samples, rows=probe.samples, classes=classes, coding=_CODING, is_delta=True)


def heard(state: HubState, heading: Heading, body: Body, probe: ProbeOptions, classes: int) -> HubState:
    """Another hub's predictions.  Raises RemoteError."""
    said = bodies.decode_probe(
        body,
        digest=bytes.fromhex(probe.digest),
        classes=classes,
        samples=probe.samples,
        coding=_CODING,
    )
    held = applied(None, said, heading.round)
    return replace(state, beliefs={**state.beliefs, heading.sender: held})
