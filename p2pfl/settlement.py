"""Settling shares: each in its turn is absorbed, whole or in part, or refused, and the audit log says so."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl import capping, validation
from p2pfl.aggregation import is_capped, mixer_of
from p2pfl.gossip.links import Arrival
from p2pfl.ids import PeerId
from p2pfl.neighbours import SKIP_AFTER_ROUNDS
from p2pfl.state import State

__all__ = ["settle"]


def settle(state: State, *, in_round: bool = False) -> tuple[int, list[PeerId]]:
    """Merge every share whose turn it is.  Returns (how many, whom to acknowledge after the commit).

    in_round: push-pull pulls the models that came with them, too, as a round does once; outside of one only
    a peer that has none of its own does.
    """
    if not (senders := state.links.senders()):
        return 0, []
    upto = state.upto if in_round else None
    if in_round and state.spec.gossip.topology.is_finite_time:
        upto = _in_turn(state, upto)
    for name in senders:
        if reason := validation.objection(state, PeerId(name)):
            state.links.refuse(name, reason, upto)
    settled, moved = state.links.collect(capping.credit(state), upto)
    merged = [(peer, arrival) for peer, arrival in settled if not arrival.reason]
    far = iter(_absorb(state, merged, in_round=in_round))
    for peer, arrival in settled:
        header = arrival.header
        state.decide(
            "share",
            peer,
            arrival.reason or "absorbed",
            rule=_rule(state, arrival.reason),
            weight=0.0 if arrival.reason else arrival.taken * header.weights[0],
            distance=None if arrival.reason else next(far),
            seq=header.edge_seq,
            digest=header.digest,
        )
    return len(merged), [PeerId(p) for p in moved]


def _in_turn(state: State, upto: Mapping[str, int] | None) -> Mapping[str, int]:
    """The last share of each sender that was given before this round.

    Whoever has no neighbour in a round waits for nobody and gives the next share early; mixed early, it would
    cost the average its exactness.  A peer that was left behind goes on where the others are, so that a share
    is held back for three rounds at most.
    """
    limits = dict(state.links.reach() if upto is None else upto)
    for name in state.links.senders():
        early = [a.header.edge_seq for a in state.links.held(name, upto) if a.header.round >= state.round]
        if early:
            limits[name] = early[0] - 1
    return limits


def _absorb(state: State, merged: list[tuple[str, Arrival]], *, in_round: bool) -> list[float] | list[None]:
    """Mix what is taken.  Returns how far each model was from the own one, where that counts."""
    if is_capped(state.spec):
        return capping.absorb(state, merged)
    if state.mass.is_tracked and (in_round or state.mass.w == 0):
        # The newest of each neighbour, unless it is of a time that is over; whoever has none takes any.
        since = state.round - SKIP_AFTER_ROUNDS if state.mass.w > 0 else 0
        newest = {peer: a.body for peer, a in merged if a.header.round >= since}
        state.mass.pull([body for body in newest.values() if body is not None])
    state.mass.absorb([(a.header.weights, a.body) for _, a in merged if a.body is not None])
    return [None] * len(merged)


def _rule(state: State, reason: str) -> str:
    if reason in validation.REASONS:
        return "reputation"
    return "screening" if reason and reason != "capped" else mixer_of(state.spec).name
