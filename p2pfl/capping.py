"""Capped shares in the peer: what of the shares of a settlement is mixed, whom to give to, and the alarm.

The books are those of the edges (gossip/links.py), the mathematics is in gossip/capped.py.
"""

from __future__ import annotations

from p2pfl.aggregation import is_capped
from p2pfl.gossip.capped import may_give
from p2pfl.gossip.links import Arrival
from p2pfl.gossip.mixing import uniform_fraction
from p2pfl.ids import PeerId
from p2pfl.plans import neighbours_of
from p2pfl.state import State

__all__ = ["absorb", "check_drain", "counted", "credit", "gives_to"]

# The alarm: this part of the first weight is with neighbours that have not returned it.
_DRAINED = 0.5
# Debtors named in a fact.
_NAMED = 16


def credit(state: State) -> float | None:
    """The weight of a share of this peer's, c w(0); None where shares are not capped."""
    if not is_capped(state.spec):
        return None
    return uniform_fraction(len(neighbours_of(state, state.round)[1])) * state.nominal


def absorb(state: State, merged: list[tuple[str, Arrival]]) -> list[float]:
    """Mix what was taken of `merged`, in its order.  Returns how far each model was from the own one."""
    shares = [(a.header.weights, a.body) for _, a in merged if a.body is not None]
    return state.mass.absorb_capped(shares, [a.taken for _, a in merged], state.spec.trust.aggregator.tau)


def gives_to(state: State, peer: PeerId, w: float) -> bool:
    """Whether a share of weight `w` may go to `peer`: it is mixed here, and returns what it gets."""
    most = credit(state)
    if most is None:
        return True
    owed = state.links.edge_to(peer).sent_w - state.links.edge_from(peer).absorbed_w
    return state.consortium.accepts(peer) and may_give(w, owed, most)


def counted(state: State) -> float:
    """The weight that this peer's steps count with: w(0), with capped shares less what was not returned.

    Otherwise steps of full weight on what is left would be larger than the fit made them: under thieves of a
    third of the weight, by half.
    """
    if not is_capped(state.spec) or state.links.entered == 0:
        return state.nominal
    lost = sum(_debts(state).values()) + max(0.0, state.links.written_off)
    return max(0.0, state.nominal - lost)


def check_drain(state: State, w: float) -> None:
    """Raise the alarm, once, when half of the first weight was given and not returned.

    w: the weight now, for the fact.
    """
    is_drained = counted(state) <= _DRAINED * state.nominal
    if is_drained and not state.mass_is_drained:
        owed = _debts(state)
        debtors = sorted((p for p in owed if owed[p] > 0), key=lambda p: (-owed[p], p))[:_NAMED]
        state.fact("mass drained", "warning", round=state.round, w=w, weight0=state.nominal, debtors=debtors)
    state.mass_is_drained = is_drained


def _debts(state: State) -> dict[str, float]:
    """What each neighbour owes.  A share of this round or the last is on its way, and not yet owed."""
    owed = {}
    for peer, out in sorted(state.links.out.items()):
        fresh = sum(entry.w for entry in out.entries if entry.header.round >= state.round - 1)
        owed[peer] = max(0.0, out.sent_w - fresh - state.links.edge_from(peer).absorbed_w)
    return owed
